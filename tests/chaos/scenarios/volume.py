"""Line 1: many acknowledged jobs under random faults of every kind; none lost, nothing done twice."""

import time
from threading import Event, Thread

import psycopg

from tests.chaos.checker import Findings, check, weights_of
from tests.chaos.cluster import Cluster
from tests.chaos.faults import inject, ring, schedule
from tests.chaos.harness import REAL, Harness
from tests.chaos.report import Row
from tests.chaos.servers import until

WAITING = 24
"""Unfinished jobs at a time: enough to keep three trainers busy through any fault."""


def volume(h: Harness) -> list[Row]:
    rng, count, real, faults = h.random(1), h.times(1000), h.times(50), h.times(100, 5)
    with h.cluster("1-volume", trainers_count=3, step_seconds=0.01, disk_mib=768) as cluster:
        repeated = _repeated_messages(h, cluster, h.times(20, 2))
        files = [cluster.client.upload(h.rows), cluster.client.upload(h.real_rows)]
        stop, problem = Event(), []

        def submit() -> None:
            try:
                for number in range(count):
                    while not stop.is_set() and _unfinished(cluster) >= WAITING:
                        time.sleep(0.2)
                    if stop.is_set():
                        return
                    if number % 25 == 24:
                        files[0] = cluster.client.upload(h.rows)
                    if number % max(1, count // real) == 0:
                        values = {"base": REAL, "seed": 7, "epochs": 3, "batch_size": 16, "suffix": "real"}
                        cluster.client.new_job(files[1], **values)
                    else:
                        cluster.client.new_job(files[0], seed=number, epochs=2, suffix=f"toy-{number % 20}")
            except Exception as exc:
                problem.append(exc)

        submitter = Thread(target=submit, name="submitter")
        before = len(cluster.client.jobs)
        submitter.start()
        try:
            for done, name in enumerate(schedule(faults, rng, disk=not cluster.disk_reason)):
                # As many jobs end between any two faults, however fast this machine is.
                target = before + count * done // faults
                until(lambda at=target: bool(problem) or _ended(cluster) >= at, 120, f"{target} jobs to end")  # type: ignore[misc]
                h.tell(f"{_ended(cluster)} of {count} jobs ended; {name}", done / faults)
                inject(name, cluster, rng)
                time.sleep(rng.uniform(0.0, 1.0))
            until(lambda: not submitter.is_alive(), 300, "the last job to be submitted")
        finally:
            stop.set()
            submitter.join()
        if problem:
            raise problem[0]
        h.tell("waiting for the last jobs", 0.95)
        cluster.wait_until_done(180)
        found = check(cluster, h.rows)
        reals = [weights_of(cluster.audit, cluster.store, j.id) for j in cluster.client.jobs if j.base == REAL]
        sets = len(set(reals))
        return [
            *_rows(found, cluster, count, faults),
            repeated,
            Row(
                1,
                "real jobs among them (tiny random BERT, torch), all of one recipe",
                str(len(reals)),
                "1 set of weights",
                f"{sets} set{'s' if sets != 1 else ''} of weights",
                sets == 1,
            ),
        ]


def _ended(cluster: Cluster) -> int:
    return len(cluster.client.jobs) - _unfinished(cluster)


def _unfinished(cluster: Cluster) -> int:
    """The database may be down just now."""
    while True:
        try:
            return cluster.audit.unfinished()
        except psycopg.Error:  # a restart of PostgreSQL is one of the faults
            time.sleep(0.2)


def _repeated_messages(h: Harness, cluster: Cluster, times: int) -> Row:
    """Before any fault: ten copies of a job's message at once."""
    file_id = cluster.client.upload(h.rows)
    jobs = [cluster.client.new_job(file_id, epochs=1, seed=n, suffix="ten-bells") for n in range(times)]
    for job in jobs:
        ring(cluster, job.id)
    cluster.wait_until_done(120)
    found = check(cluster, h.rows, jobs).all()
    attempts = [cluster.audit.job(job.id)[1] for job in jobs]
    versions = cluster.audit.query("SELECT count(*) FROM versions")[0][0]
    return Row(
        1,
        "one job's message delivered 10 times at once",
        str(times),
        "1 model, 1 attempt each",
        f"{versions} models, {sum(attempts)} attempts",
        not found and versions == times == sum(attempts),
    )


def _rows(found: Findings, cluster: Cluster, count: int, faults: int) -> list[Row]:
    extra = cluster.audit.query("SELECT count(*) FROM jobs WHERE kind = 'training'")[0][0] - len(cluster.client.jobs)
    effects = {
        "rows of jobs or versions that nobody asked for": found.duplicates + ["job"] * extra,
        "versions that are missing, too many or do not verify": found.bad_versions,
        "jobs whose step metrics miss or repeat a step": found.bad_results,
        "toy weights other than an unbroken run's": found.bad_weights,
        "writes of a worker that had lost its job": found.stale_writes,
        "changes of state that the design does not know": found.illegal_edges,
        "jobs with more than 3 failures in a row": found.unbounded,
    }
    disk = f"; no ENOSPC ({cluster.disk_reason})" if cluster.disk_reason else ""
    lost = found.lost + found.unsuccessful
    cluster.ledger.write("findings", **found.all())
    return [
        Row(
            1,
            f"acknowledged jobs (and their uploads) under {faults} random faults{disk}",
            f"{count:,}",
            "0 lost, all succeed",
            f"{len(found.lost)} lost, {len(found.unsuccessful)} did not succeed",
            not lost,
        ),
        *(Row(1, what, f"{count:,}", "0", str(len(culprits)), not culprits) for what, culprits in effects.items()),
    ]
