"""Line 2: the broker goes away, or freezes; PostgreSQL freezes. Callers must not notice, or be told soon."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from signal import SIGCONT, SIGSTOP
from typing import Any

from tests.chaos.checker import check
from tests.chaos.client import JOBS
from tests.chaos.cluster import Cluster
from tests.chaos.harness import Harness
from tests.chaos.report import Row
from tests.chaos.servers import until

OUTAGE_SECONDS, PER_SECOND = 30.0, 2.0
FREEZE_SECONDS = 8.0


def broker_away(h: Harness) -> list[Row]:
    """FLUSHALL, then nobody there for 30 s, while jobs keep coming."""
    times, seconds = h.times(5), max(6.0, OUTAGE_SECONDS * min(1.0, h.scale * 5))
    answers: list[dict[str, Any]] = []
    starts: list[float] = []
    with h.cluster("2-outages", step_seconds=0.005) as cluster:
        file_id = cluster.client.upload(h.rows)
        for number in range(times):
            h.tell(f"outage {number + 1} of {times}", 0.7 * number / times)
            # Half the times jobs are in the queue when it is emptied; else the trainers are idle, and only Valkey could
            # tell them of those that come.
            for seed in range(6 * (number % 2)):
                cluster.client.new_job(file_id, epochs=1, seed=seed)
            cluster.valkey.flush()
            cluster.valkey.kill()
            began = time.monotonic()
            _submit_for(seconds, cluster, file_id)
            answers += [e for e in cluster.ledger.requests(since=began) if e["path"] == JOBS]
            mark = cluster.audit.last()
            cluster.valkey.start()
            starts.append(until(lambda m=mark: any(c.claims for c in cluster.audit.changes(m)), 60, "the backlog"))  # type: ignore[misc]
            cluster.wait_until_done(180)
        found = check(cluster, h.rows).all()
        cluster.ledger.write("findings", **found)
        slow = _quantile([a["seconds"] for a in answers], 0.99) * 1000
        refused = [a for a in answers if a["status"] is None or a["status"] >= 300]
        return [
            Row(
                2,
                f"jobs submitted while Valkey was away ({times} times FLUSHALL + {seconds:.0f} s)",
                str(len(answers)),
                "all 2xx, p99 < 300 ms",
                f"{len(answers) - len(refused)} 2xx, p99 {slow:.0f} ms",
                not refused and slow < 300,
            ),
            Row(
                2,
                "jobs lost, failed or done twice by those outages",
                str(len(cluster.client.jobs)),
                "0",
                str(sum(map(len, found.values()))),
                not found,
            ),
            Row(
                2,
                "from Valkey's return to the first start of the backlog",
                str(times),
                "at most 20 s",
                f"longest {max(starts):.1f} s",
                max(starts) <= 20,
            ),
            *_frozen(h, cluster, file_id),
        ]


def _submit_for(seconds: float, cluster: Cluster, file_id: str) -> None:
    """One job each half second, from threads, so that a slow answer delays none."""
    until_ = time.monotonic() + seconds
    with ThreadPoolExecutor(16) as pool:
        number = 0
        while time.monotonic() < until_:
            number += 1
            pool.submit(cluster.client.create, file_id, once=True, epochs=1, seed=number)
            time.sleep(1 / PER_SECOND)


def _frozen(h: Harness, cluster: Cluster, file_id: str) -> list[Row]:
    """SIGSTOP of a server, and connections that stay open and say nothing."""
    job, model = cluster.client.jobs[0].id, "chaos"
    ask: list[Callable[[], Any]] = [
        lambda: cluster.client.request("GET", "/health/live"),
        lambda: cluster.client.request("GET", "/health/ready"),
        lambda: cluster.client.request("GET", "/metrics"),
        lambda: cluster.client.request("GET", JOBS),
        lambda: cluster.client.request("GET", f"{JOBS}/{job}"),
        lambda: cluster.client.request("GET", f"{JOBS}/{job}/events"),
        lambda: cluster.client.request("GET", f"{JOBS}/{job}/checkpoints"),
        lambda: cluster.client.request("GET", "/v1/models"),
        lambda: cluster.client.request("POST", f"{JOBS}/{job}/cancel"),
        lambda: cluster.client.request("POST", "/predict", json={"model": model, "inputs": ["w1"]}),
        lambda: cluster.client.request(
            "POST", "/v1/files", files={"file": ("r.jsonl", h.rows)}, data={"purpose": "fine-tune"}
        ),
        lambda: cluster.client.create(file_id, once=True, epochs=1),
    ]
    seconds = max(3.0, FREEZE_SECONDS * min(1.0, h.scale * 5))
    rows = []
    for server in ("valkey", "postgres"):
        requests: list[dict[str, Any]] = []
        for how in (_stopped, _silent):
            h.tell(f"{server} frozen ({how.__name__[1:]})", 0.8)
            began = time.monotonic()
            with how(cluster, server), ThreadPoolExecutor(len(ask)) as pool:
                while time.monotonic() - began < seconds:
                    # All at once, then again: most of them meet the same few connections.
                    for future in [pool.submit(one) for one in ask]:
                        future.result()
            requests += cluster.ledger.requests(since=began)
            cluster.client.new_job(file_id, epochs=1)
            cluster.wait_until_done(90)
        slowest = max(requests, key=lambda r: r["seconds"])
        rows.append(
            Row(
                2,
                f"requests while {server.capitalize()} was frozen (SIGSTOP; silent connections)",
                str(len(requests)),
                "none over 2.5 s",
                f"slowest {slowest['seconds']:.2f} s ({slowest['method']} {_route(slowest['path'])})",
                slowest["seconds"] <= 2.5,
            )
        )
    return rows


def _route(path: str) -> str:
    return "/".join("{id}" if part.startswith("ftjob-") else part for part in path.split("/"))


@contextmanager
def _stopped(cluster: Cluster, server: str) -> Any:
    getattr(cluster, server).signal(SIGSTOP)
    try:
        yield
    finally:
        getattr(cluster, server).signal(SIGCONT)


@contextmanager
def _silent(cluster: Cluster, server: str) -> Any:
    cluster.proxies[f"{server}-gateway"].set("freeze")
    try:
        yield
    finally:
        cluster.proxies[f"{server}-gateway"].set("pass")


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("inf")
