"""Line 5: no worker goes deaf when Valkey restarts; nobody is told a lie when PostgreSQL is away."""

import time
from typing import Any

from tests.chaos.checker import check
from tests.chaos.client import JOBS
from tests.chaos.cluster import Cluster
from tests.chaos.harness import Harness
from tests.chaos.report import Row
from tests.chaos.servers import until

TRAINERS = 2
HEARD_SECONDS = 30.0
DOWN_SECONDS = 30.0


def valkey_restarts(h: Harness) -> list[Row]:
    """After each restart every trainer must take a job that was submitted after it."""
    rng, times = h.random(5), h.times(100, 2)
    took: list[float] = []
    silent = 0
    with h.cluster("5-restarts", trainers_count=TRAINERS, step_seconds=0.05) as cluster:
        file_id = cluster.client.upload(h.rows)
        for number in range(times):
            busy = number % 2 == 1
            h.tell(f"Valkey restart {number + 1} of {times}, {'busy' if busy else 'idle'}", 0.8 * number / times)
            if busy:
                for seed in range(TRAINERS):
                    cluster.client.new_job(file_id, epochs=2, seed=seed, suffix="at-work")
                until(lambda: all(t.children() for t in cluster.trainers), 60, "every trainer to be at work")
            cluster.valkey.kill()
            time.sleep(rng.choice((0.0, 0.3, 1.0)))
            cluster.valkey.start()
            # A trainer that ends a job looks for the next one without being told: only an idle one must hear the bell.
            cluster.wait_until_done(60)
            mark, since = cluster.audit.last(), time.monotonic()
            try:
                _every_trainer_claims(cluster, file_id, mark)
                took.append(time.monotonic() - since)
            except TimeoutError as exc:
                silent += 1
                cluster.ledger.write("silent", restart=number, busy=busy, said=str(exc))
            cluster.wait_until_done(90)
        dead = [t.name for t in cluster.trainers if not t.alive or t.starts > 1]
        found = check(cluster, h.rows).all()
        cluster.ledger.write("findings", **found)
    return [
        Row(
            5,
            f"Valkey restarts (SIGKILL), half of them with every one of {TRAINERS} trainers at work",
            str(times),
            "0 dead, 0 silent",
            f"{len(dead)} dead, {silent} silent; all took a new job within {max(took, default=0):.1f} s",
            not dead and not silent,
        ),
        Row(
            5,
            "jobs lost, failed or done twice by those restarts",
            str(len(cluster.client.jobs)),
            "0",
            str(sum(map(len, found.values()))),
            not found,
        ),
    ]


def _every_trainer_claims(cluster: Cluster, file_id: str, mark: int) -> None:
    """Submit until each has claimed a job since `mark`."""
    submitted = 0

    def all_heard() -> bool:
        nonlocal submitted
        claims = [c for c in cluster.audit.changes(mark) if c.claims]
        if {c.writer for c in claims} >= {t.writer for t in cluster.trainers}:
            return True
        while submitted < len(claims) + TRAINERS:
            cluster.client.new_job(file_id, epochs=1, seed=submitted, suffix="canary")
            submitted += 1
        return False

    until(all_heard, HEARD_SECONDS, "every trainer to claim a job", every=0.1)


def database_away(h: Harness) -> list[Row]:
    """`stop -m immediate` for 30 s under the default lease, with two trainings at work."""
    seconds = max(5.0, DOWN_SECONDS * min(1.0, h.scale * 5))
    with h.cluster("5-database", trainers_count=2, step_seconds=0.2, lease_seconds=45, heartbeat_seconds=2) as cluster:
        file_id = cluster.client.upload(h.rows)
        epochs = 5 + round(seconds / 2)  # of 10 steps, 2 s: they go on past the outage
        running = [cluster.client.new_job(file_id, epochs=epochs, seed=n, suffix="through") for n in range(2)]
        for job in running:
            cluster.wait_for_step(job.id, 5)
        h.tell(f"PostgreSQL away for {seconds:.0f} s", 0.9)
        began = time.monotonic()
        before = {job.id: cluster.journal.step(job.id) for job in running}
        cluster.postgres.stop_immediately()
        acknowledged = _ask_for(seconds, cluster, file_id, running[0].id)
        trained = [cluster.journal.step(job.id) - before[job.id] for job in running]
        requests = cluster.ledger.requests(since=began)
        cluster.postgres.start()
        back = time.monotonic()
        until(lambda: cluster.client.create(file_id, once=True, epochs=1) is not None, 30, "a job to be accepted")
        recovered = time.monotonic() - back
        cluster.wait_until_done(120)
        found = check(cluster, h.rows).all()
        cluster.ledger.write("findings", **found)
        attempts = [cluster.audit.job(job.id)[1] for job in running]
        honest = [r for r in requests if r["status"] == 503 and r["retry_after"]]
        slowest = max(r["seconds"] for r in requests)
    return [
        Row(
            5,
            f"requests while PostgreSQL was away for {seconds:.0f} s",
            str(len(requests)),
            "0 false 2xx, all 503 with Retry-After",
            f"{acknowledged} false 2xx, {len(honest)} such 503, slowest {slowest:.1f} s; back after {recovered:.1f} s",
            acknowledged == 0 and len(honest) == len(requests),
        ),
        Row(
            5,
            "trainings at work while PostgreSQL was away",
            str(len(running)),
            "go on and finish in the same attempt",
            f"{min(trained)} steps or more meanwhile, attempts {attempts}, {sum(map(len, found.values()))} findings",
            min(trained) > seconds * 2 and attempts == [1, 1] and not found,
        ),
    ]


def _ask_for(seconds: float, cluster: Cluster, file_id: str, job_id: str) -> int:
    """Ask for whatever needs the database; how often a lie was told."""
    until_, lies = time.monotonic() + seconds, 0
    upload: dict[str, Any] = {
        "files": {"file": ("r.jsonl", b'{"text": "a", "label": "b"}\n')},
        "data": {"purpose": "fine-tune"},
    }
    while time.monotonic() < until_:
        made = cluster.client.create(file_id, once=True)
        answers = [
            cluster.client.request("GET", f"{JOBS}/{job_id}"),
            cluster.client.request("GET", "/v1/models"),
            cluster.client.request("POST", f"{JOBS}/{job_id}/cancel"),
            cluster.client.request("POST", "/v1/files", **upload),
        ]
        lies += (made is not None) + sum(a is not None and a.is_success for a in answers)
        time.sleep(0.2)
    return lies


def restarts(h: Harness) -> list[Row]:
    """Line 5."""
    return [*valkey_restarts(h), *database_away(h)]
