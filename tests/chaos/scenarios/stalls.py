"""Line 4: a worker that was stopped past its lease wakes up and finds that its job is somebody else's."""

import os
import time
from functools import partial
from random import Random
from signal import SIGCONT, SIGSTOP

from tests.chaos.checker import check, stale_writes
from tests.chaos.cluster import Cluster
from tests.chaos.harness import Harness, in_parallel
from tests.chaos.report import Row
from tests.chaos.servers import until


def stalls(h: Harness) -> list[Row]:
    rng, rows = h.random(4), []
    default = {"lease_seconds": 45.0, "heartbeat_seconds": 2.0}
    for times, at_once, options in ((h.times(27, 2), 2, {}), (h.times(3, 0), 3, default)):
        if times == 0:
            continue
        lease = options.get("lease_seconds", 5.0)
        trainers = at_once + 2
        with h.cluster(f"4-stalls-{lease:g}", trainers_count=trainers, step_seconds=0.02, **options) as cluster:
            file_id = cluster.client.upload(h.rows)
            tasks = [partial(_stall, cluster, file_id, n, Random(rng.random())) for n in range(times)]
            for start in range(0, times, at_once):
                h.tell(f"stalls with a lease of {lease:g} s: {start} of {times}", start / times)
                in_parallel(tasks[start : start + at_once], at_once)
            found = check(cluster, h.rows)
            stale = stale_writes(cluster.audit.changes())
            versions = cluster.audit.query("SELECT count(*) FROM versions")[0][0]
            cluster.ledger.write("findings", **found.all())
            silent = [t.name for t in cluster.trainers if not t.alive]
            rows += [
                Row(
                    4,
                    f"writes of a trainer stopped past its lease of {lease:g} s, once woken",
                    str(times),
                    "0 accepted",
                    f"{len(stale)} accepted",
                    not stale,
                ),
                Row(
                    4,
                    f"jobs whose trainer was stopped, lease {lease:g} s",
                    str(times),
                    "exactly 1 version each, of an unbroken run's weights",
                    f"{versions} versions, {sum(map(len, found.all().values()))} findings",
                    versions == times and not found.all(),
                ),
                Row(4, "stopped trainers that died of it", str(times), "0", str(len(silent)), not silent),
            ]
    return rows


def _stall(cluster: Cluster, file_id: str, seed: int, rng: Random) -> None:
    """Stop the trainer, with or without its child, until another has the job and up to 6 s more."""
    whole = rng.random() < 0.5
    job = cluster.client.new_job(file_id, seed=seed, epochs=20, suffix="stalled")
    cluster.wait_for_step(job.id, rng.randint(1, 150))
    part, fence = cluster.owner(job.id), cluster.audit.job(job.id)[2]
    assert part is not None, f"{job.id} ended too soon"
    since = time.monotonic()
    if whole:
        part.signal(SIGSTOP)
    else:
        os.kill(part.pid, SIGSTOP)
    try:
        until(lambda: cluster.audit.job(job.id)[2] > fence, 120, f"{job.id} to be claimed by another trainer")
        claimed = time.monotonic() - since
        time.sleep(rng.uniform(0, 6))
    finally:
        part.signal(SIGCONT)
    until(lambda: cluster.audit.job(job.id)[0] not in ("queued", "running"), 120, f"{job.id} to end")

    def gone() -> bool:
        """What it was doing for the lost job; it may have another."""
        return all((c.job_id, c.fence) != (job.id, fence) for c in part.children())

    left = until(gone, 30, f"the stale child of {job.id} to end")
    cluster.ledger.write("stall", job=job.id, trainer=part.writer, whole=whole, claimed=claimed, gone_after=left)
