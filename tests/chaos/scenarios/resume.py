"""Lines 3 and 7: a training that is killed or told to leave goes on where it was, to the same weights, bit for bit."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from signal import SIGKILL, SIGTERM
from typing import Any

from tests.chaos.checker import stale_writes, weights_of
from tests.chaos.cluster import Cluster, Part
from tests.chaos.harness import REAL, Harness, in_parallel
from tests.chaos.report import Row
from tests.chaos.servers import until

STEPS, EVERY = 80, 5
RECIPE: dict[str, Any] = {"base": REAL, "seed": 11, "epochs": 10, "batch_size": 16, "every_steps": EVERY}
"""160 rows, of which 16 validate and 16 test: 8 steps an epoch."""
DEFAULT_LEASE: dict[str, Any] = {"lease_seconds": 45.0, "heartbeat_seconds": 2.0}


Interrupt = Callable[[Cluster, str, Part], float]
"""Does it to the trainer that runs the job, and starts what is dead again; returns the seconds that count."""


@dataclass(frozen=True)
class Outcome:
    """What the interruptions of one job cost."""

    seconds: list[tuple[str, float]]
    """Of each interruption: what was done, and how long it took until another claim, or until the process was gone."""
    lost: list[int]
    """Steps taken again by each attempt after the first; negative: left out."""
    weights: str


def kills(h: Harness) -> list[Row]:
    """Line 3."""
    rng, rows = h.random(3), []
    kinds = [_kill_child, _kill_parent, _kill_group]
    # Two kills a job with the short lease, one with the default: three jobs at once, in each another kind.
    plans: list[tuple[int, int, dict[str, Any]]] = [(h.times(21, 3), 2, {}), (h.times(9, 3), 1, DEFAULT_LEASE)]
    for times, each, options in plans:
        lease = options.get("lease_seconds", 5.0)
        with h.cluster(f"3-kills-{lease:g}", trainers_count=3, step_seconds=0.03, **options) as cluster:
            tasks = []
            for first in range(0, times, each):
                what = [kinds[n % 3] for n in range(first, min(first + each, times))]
                steps = _random_steps(rng, len(what))
                tasks.append(list(zip(steps, what, strict=True)))
            outcomes, reference = _interrupted(h, cluster, tasks, f"kills with a lease of {lease:g} s")
            rows += _rows(3, f"kill -9 at a random step, lease {lease:g} s", outcomes, reference, EVERY)
            dead = [s for o in outcomes for name, s in o.seconds if name != _kill_child.__name__]
            rows.append(
                Row(
                    3,
                    f"from a trainer's death to the next claim, lease {lease:g} s",
                    str(len(dead)),
                    f"at most {lease + 5:g} s",
                    f"longest {max(dead):.1f} s",
                    max(dead) <= lease + 5,
                )
            )
            rows.append(_fenced(3, cluster))
    return rows


def terminations(h: Harness) -> list[Row]:
    """Line 7."""
    rng, times = h.random(7), h.times(30, 2)
    with h.cluster("7-sigterm", trainers_count=3, step_seconds=0.03) as cluster:
        tasks = [[(step, _terminate) for step in _random_steps(rng, 2)] for _ in range(times // 2)]
        outcomes, reference = _interrupted(h, cluster, tasks, "SIGTERM")
        slowest = max(s for o in outcomes for _, s in o.seconds)
        charged = cluster.audit.query("SELECT count(*) FROM jobs WHERE failures > 1")[0][0]
        return [
            *_rows(7, "SIGTERM at a random step", outcomes, reference, 0),
            Row(
                7,
                "from SIGTERM to the trainer's exit",
                str(sum(len(o.seconds) for o in outcomes)),
                "at most 5 s",
                f"longest {slowest:.1f} s",
                slowest <= 5,
            ),
            Row(7, "jobs that were charged a failed attempt", str(len(tasks)), "0", str(charged), charged == 0),
            _fenced(7, cluster),
        ]


def _random_steps(rng: Random, count: int) -> list[int]:
    """One in each part of the run, far enough apart for an attempt between them."""
    part = (STEPS - 5) // count
    return [n * part + rng.randint(1, part - 5) for n in range(count)]


def _interrupted(
    h: Harness, cluster: Cluster, tasks: Sequence[Sequence[tuple[int, Interrupt]]], what: str
) -> tuple[list[Outcome], str]:
    """Run a job for each task, three at a time; also the weights of one that nobody interrupts."""
    file_id = cluster.client.upload(h.real_rows)
    reference = _unbroken(cluster, file_id)
    outcomes: list[Outcome] = []
    for start in range(0, len(tasks), 3):
        h.tell(f"{what}: {start} of {len(tasks)} jobs", start / len(tasks))
        outcomes += in_parallel([partial(_story, cluster, file_id, t) for t in tasks[start : start + 3]], 3)
    return outcomes, reference


def _story(cluster: Cluster, file_id: str, interruptions: Sequence[tuple[int, Interrupt]]) -> Outcome:
    job = cluster.client.new_job(file_id, **RECIPE, suffix="interrupted")
    seconds = []
    for step, interrupt in interruptions:
        cluster.wait_for_step(job.id, step)
        part = cluster.owner(job.id)
        assert part is not None, f"{job.id} ended before step {step}"
        seconds.append((str(getattr(interrupt, "__name__", "")), interrupt(cluster, job.id, part)))
    until(lambda: cluster.audit.job(job.id)[0] not in ("queued", "running"), 120, f"{job.id} to end", every=0.1)
    outcome = Outcome(seconds, cluster.journal.lost(job.id), weights_of(cluster.audit, cluster.store, job.id))
    runs = [vars(run) for run in cluster.journal.runs(job.id)]
    cluster.ledger.write("outcome", job=job.id, runs=runs, **vars(outcome))
    return outcome


def _until_claimed(cluster: Cluster, job_id: str, kill: Callable[[], object], part: Part) -> float:
    fence, since = cluster.audit.job(job_id)[2], time.monotonic()
    kill()
    if not part.alive:
        part.start()
    until(lambda: cluster.audit.job(job_id)[2] > fence, 120, f"{job_id} to be claimed again")
    return time.monotonic() - since


def _kill_child(cluster: Cluster, job_id: str, part: Part) -> float:
    child = next(c for c in part.children() if c.job_id == job_id)
    return _until_claimed(cluster, job_id, partial(os.kill, child.pid, SIGKILL), part)


def _kill_parent(cluster: Cluster, job_id: str, part: Part) -> float:
    return _until_claimed(cluster, job_id, part.kill_parent, part)


def _kill_group(cluster: Cluster, job_id: str, part: Part) -> float:
    return _until_claimed(cluster, job_id, part.kill, part)


def _terminate(_cluster: Cluster, _job_id: str, part: Part) -> float:
    assert part.process is not None
    since = time.monotonic()
    os.kill(part.pid, SIGTERM)
    part.process.wait(60)
    seconds = time.monotonic() - since
    part.start()
    return seconds


def _unbroken(cluster: Cluster, file_id: str) -> str:
    """The weights of the same recipe when nobody interferes."""
    job = cluster.client.new_job(file_id, **RECIPE, suffix="unbroken")
    cluster.wait_until_done(120)
    reference = weights_of(cluster.audit, cluster.store, job.id)
    runs = cluster.journal.runs(job.id)
    assert reference, f"{job.id} is {cluster.audit.job(job.id)[0]}: see the logs in {cluster.folder}"
    assert [(r.first, r.last) for r in runs] == [(1, STEPS)], runs
    return reference


def _rows(line: int, what: str, outcomes: list[Outcome], reference: str, allowed: int) -> list[Row]:
    same = sum(o.weights == reference for o in outcomes)
    lost = [steps for o in outcomes for steps in o.lost]
    most, least = max(lost, default=0), min(lost, default=0)
    return [
        Row(
            line,
            f"steps lost by {what} (saved every {EVERY} steps)",
            str(sum(len(o.seconds) for o in outcomes)),
            f"at most {allowed}" if allowed else "0",
            f"at most {most}" + (f"; {-least} left out" if least < 0 else ""),
            0 <= least <= most <= allowed,
        ),
        Row(
            line,
            f"final weights after {what}, beside an unbroken run's",
            f"{len(outcomes)} jobs",
            "bit-identical",
            f"{same} of {len(outcomes)}",
            same == len(outcomes),
        ),
    ]


def _fenced(line: int, cluster: Cluster) -> Row:
    found = stale_writes(cluster.audit.changes())
    cluster.ledger.write("findings", stale_writes=found)
    return Row(line, "writes of a worker that had lost its job", "all", "0", str(len(found)), not found)
