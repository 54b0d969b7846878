"""Line 6: the newest checkpoint is damaged at a random place; it must be noticed, and the one before it used."""

import os
import time
from functools import partial
from pathlib import Path
from random import Random

from tests.chaos.checker import check
from tests.chaos.client import JOBS, Asked
from tests.chaos.cluster import Cluster
from tests.chaos.harness import Harness, in_parallel
from tests.chaos.report import Row
from tests.chaos.servers import until

EVERY = 5


def corruption(h: Harness) -> list[Row]:
    rng, times = h.random(6), h.times(50, 4)
    with h.cluster("6-corruption", trainers_count=3, step_seconds=0.02) as cluster:
        file_id = cluster.client.upload(h.rows)
        # A paused job's checkpoints have rows already; after a kill the newest is often found in the store alone.
        tasks = [partial(_damage, cluster, file_id, n, Random(rng.random()), by_pause=n % 2 == 0) for n in range(times)]
        used: list[bool] = []
        for start in range(0, times, 3):
            h.tell(f"damaged checkpoints: {start} of {times}", start / times)
            used += in_parallel(tasks[start : start + 3], 3)
        found = check(cluster, h.rows).all()
        cluster.ledger.write("findings", **found)
    return [
        Row(
            6,
            "newest checkpoint with one bit flipped or cut short, at a random offset of a random file",
            str(times),
            "noticed every time, previous good one used",
            f"{sum(used)} of {times}",
            all(used),
        ),
        Row(
            6,
            "those jobs: succeeded with an unbroken run's weights",
            str(times),
            "all",
            f"{sum(map(len, found.values()))} findings",
            not found,
        ),
    ]


def _damage(cluster: Cluster, file_id: str, seed: int, rng: Random, *, by_pause: bool) -> bool:
    """Whether the checkpoint before the damaged one was gone on from."""
    job = cluster.client.new_job(file_id, seed=seed, epochs=12, every_steps=EVERY, suffix="damaged")
    cluster.wait_for_step(job.id, rng.randint(3 * EVERY, 100))
    part = cluster.owner(job.id)
    assert part is not None, f"{job.id} ended too soon"
    if by_pause:
        cluster.client.insist("POST", f"{JOBS}/{job.id}/pause")
        until(lambda: cluster.audit.job(job.id)[0] == "paused", 30, f"{job.id} to pause")
    else:
        part.kill()
    before, newest = sealed(cluster.store, job)[-2:]
    said = damage(newest, rng)
    if by_pause:
        cluster.client.insist("POST", f"{JOBS}/{job.id}/resume")
    else:
        time.sleep(rng.uniform(0, 1))
        part.start()
    until(lambda: cluster.audit.job(job.id)[0] not in ("queued", "running"), 120, f"{job.id} to end", every=0.1)
    runs = cluster.journal.runs(job.id)
    cluster.ledger.write("damage", job=job.id, said=said, by_pause=by_pause, runs=[vars(r) for r in runs])
    return runs[-1].first == step_of(before) + 1


def sealed(store: Path, job: Asked) -> list[Path]:
    """The job's checkpoints by step."""
    return sorted((store / "checkpoints" / job.id).glob("*/step-*"), key=step_of)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def damage(folder: Path, rng: Random) -> str:
    """Flip one bit of it, or cut one file short; every byte of the checkpoint is as likely."""
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    path = rng.choices(files, [p.stat().st_size for p in files])[0]
    offset, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
    if rng.random() < 0.3:
        os.truncate(path, offset)
        return f"{path.name} cut at {offset}"
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {offset} of {path.name} flipped"
