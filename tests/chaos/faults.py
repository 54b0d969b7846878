"""The faults, each with its own repair: kill, freeze, cut, restart, empty, fill. Chosen by a seeded generator."""

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from app.contracts.queues import RUN_JOB, TRAINING_QUEUE
from app.core.queue import Bell
from tests.chaos.cluster import Cluster, Part
from tests.chaos.proxy import Mode

Fault = Callable[[Cluster, random.Random], str]
"""Does it, repairs what a supervisor or an operator would, says what it did."""


def busy_trainer(cluster: Cluster, rng: random.Random) -> Part:
    """One that has a training child, if any has."""
    busy = [t for t in cluster.trainers if t.children()]
    return rng.choice(busy or [t for t in cluster.trainers if t.alive])


def kill_child(cluster: Cluster, rng: random.Random) -> str:
    children = busy_trainer(cluster, rng).children()
    if not children:
        return "no child to kill"
    child = rng.choice(children)
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    return f"killed the child of {child.job_id}"


def kill_parent(cluster: Cluster, rng: random.Random) -> str:
    part = busy_trainer(cluster, rng)
    part.kill_parent()
    time.sleep(rng.uniform(0, 2))
    part.start()
    return f"killed {part.name} alone"


def kill_group(cluster: Cluster, rng: random.Random) -> str:
    part = busy_trainer(cluster, rng)
    part.kill()
    time.sleep(rng.uniform(0, 2))
    part.start()
    return f"killed {part.name} and its children"


def kill_gateway(cluster: Cluster, rng: random.Random) -> str:
    cluster.gateway.kill()
    time.sleep(rng.uniform(0, 1))
    cluster.gateway.start()
    return "killed the gateway"


def stall_trainer(cluster: Cluster, rng: random.Random) -> str:
    part = busy_trainer(cluster, rng)
    seconds = cluster.lease_seconds + rng.uniform(1, 4)
    part.signal(signal.SIGSTOP)
    time.sleep(seconds)
    part.signal(signal.SIGCONT)
    return f"stopped {part.name} for {seconds:.1f} s, past its lease"


def cut(server: str, cluster: Cluster, rng: random.Random) -> str:
    name = f"{server}-{rng.choice(('gateway', 'trainer'))}"
    cluster.proxies[name].cut()
    return f"cut {name}"


def hinder(mode: Mode, server: str, cluster: Cluster, rng: random.Random) -> str:
    name, seconds = f"{server}-{rng.choice(('gateway', 'trainer'))}", rng.uniform(1, 4)
    cluster.proxies[name].set(mode)
    time.sleep(seconds)
    cluster.proxies[name].set("pass")
    return f"{mode} at {name} for {seconds:.1f} s"


def flush(cluster: Cluster, rng: random.Random) -> str:
    cluster.valkey.flush()
    return "FLUSHALL"


def restart_valkey(cluster: Cluster, rng: random.Random) -> str:
    cluster.valkey.kill()
    time.sleep(rng.uniform(0, 3))
    cluster.valkey.start()
    return "restarted Valkey after SIGKILL"


def restart_postgres(cluster: Cluster, rng: random.Random) -> str:
    how = rng.choice((cluster.postgres.kill, cluster.postgres.stop_immediately))
    how()
    time.sleep(rng.uniform(0, 3))
    cluster.postgres.start()
    return f"restarted PostgreSQL after {how.__name__}"


def ring(cluster: Cluster, job_id: str, times: int = 10) -> None:
    """The same doorbell message many times at once, past the proxies."""
    bell = Bell(f"redis://127.0.0.1:{cluster.valkey.port}/0")
    with ThreadPoolExecutor(times) as pool:
        list(pool.map(lambda _: bell._celery.send_task(RUN_JOB, args=[job_id], queue=TRAINING_QUEUE), range(times)))
    bell.close()


def duplicate(cluster: Cluster, rng: random.Random) -> str:
    waiting = cluster.audit.query("SELECT id FROM jobs WHERE finished_at IS NULL ORDER BY id")
    if not waiting:
        return "no job to ring for"
    job_id = rng.choice(waiting)[0]
    ring(cluster, job_id)
    return f"rang 10 times for {job_id}"


def fill_disk(cluster: Cluster, rng: random.Random) -> str:
    filler, seconds = cluster.store / "filler", rng.uniform(1, 3)
    with filler.open("wb") as out, suppress(OSError):
        while True:
            out.write(bytes(1 << 20))
            out.flush()
    time.sleep(seconds)
    filler.unlink()
    return f"filled the store for {seconds:.1f} s"


FAULTS: dict[str, Fault] = {
    "kill -9 of a training process": kill_child,
    "kill -9 of a trainer": kill_parent,
    "kill -9 of a trainer and its children": kill_group,
    "kill -9 of the gateway": kill_gateway,
    "SIGSTOP of a trainer past its lease": stall_trainer,
    "connections to PostgreSQL cut": partial(cut, "postgres"),
    "connections to Valkey cut": partial(cut, "valkey"),
    "connections to PostgreSQL frozen": partial(hinder, "freeze", "postgres"),
    "connections to Valkey frozen": partial(hinder, "freeze", "valkey"),
    "connections to PostgreSQL slow": partial(hinder, "delay", "postgres"),
    "connections to Valkey refused": partial(hinder, "refuse", "valkey"),
    "FLUSHALL": flush,
    "Valkey killed and restarted": restart_valkey,
    "PostgreSQL killed and restarted": restart_postgres,
    "doorbell rung 10 times": duplicate,
    "store full (ENOSPC)": fill_disk,
}


def schedule(count: int, rng: random.Random, *, disk: bool) -> list[str]:
    """Each kind as often as the next, in random order."""
    kinds = [name for name in FAULTS if disk or "ENOSPC" not in name]
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += rng.sample(kinds, len(kinds))
    return chosen[:count]


def inject(name: str, cluster: Cluster, rng: random.Random) -> None:
    """Do it, and write it down."""
    since = time.monotonic()
    said = FAULTS[name](cluster, rng)
    cluster.ledger.write("fault", fault=name, said=said, seconds=round(time.monotonic() - since, 2))
