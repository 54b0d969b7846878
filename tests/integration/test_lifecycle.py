"""The claim, the fence and the end of a job, against real Postgres; publication against a real store."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from app.contracts.training import DatasetFile, Finished, TrainingSpec
from app.core.ids import new_id
from app.core.queue import Bell
from app.core.settings import Settings
from app.registry.files import FileRepository
from app.registry.jobs import JobRepository
from app.registry.leases import LeaseRepository, Orders
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import FileRow, JobRow, VersionRow
from model_store.store import Store
from tests import toy_artifact
from tests.integration.helpers import finish_all
from workers.context import WorkerContext
from workers.publication import publish, stage
from workers.reconciler import reconcile_once

LEASE = 45.0


@pytest.fixture
def context(database: Database, settings: Settings, tmp_path: Path) -> WorkerContext:
    assert settings.redis_url
    return WorkerContext(settings, database, Store(tmp_path / "store"), settings.redis_url)


@pytest.fixture
def job_id(database: Database) -> str:
    finish_all(database)
    return add_job(database)


def add_job(database: Database, **values: Any) -> str:
    with database.unit_of_work() as session:
        file = FileRow(id=new_id("file-"), filename="f", purpose="fine-tune", bytes=1, sha256="0" * 64)
        FileRepository(session).add(file)
        row = JobRow(
            id=new_id("ftjob-"),
            task="text-classification",
            base_model="toy",
            model_name=f"m-{file.id[-8:]}",
            seed=1,
            training_file=file.id,
            request={"peft": {}, "hyperparameters": {}, "early_stopping": None, "dataset": {}, "checkpoint": {}},
            max_attempts=3,
            **{"kind": "training", **values},
        )
        JobRepository(session).add(row)
    return row.id


def claim(database: Database, kind: str = "training", max_trainings: int = 16) -> JobRow | None:
    with database.unit_of_work() as session:
        return LeaseRepository(session).claim_next("me", LEASE, kind=kind, max_trainings=max_trainings)


def expire(database: Database, job_id: str) -> None:
    """Let the lease run out, as 45 silent seconds would."""
    with database.unit_of_work() as session:
        past = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1)
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=past, rung_at=None))


def state(database: Database, job_id: str) -> JobRow:
    with database.unit_of_work() as session:
        row = JobRepository(session).get(job_id)
    assert row is not None
    return row


def test_ten_copies_of_a_message_start_a_job_once(database: Database, job_id: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        claims = list(pool.map(lambda _: claim(database), range(10)))
    won = [c for c in claims if c is not None]
    assert [(c.attempt, c.fence) for c in won] == [(1, 1)]


def test_a_stale_worker_writes_nothing(database: Database, job_id: str) -> None:
    first = claim(database)
    expire(database, job_id)
    second = claim(database)
    assert first is not None and second is not None
    assert (second.attempt, second.fence) == (2, 2)
    with database.unit_of_work() as session:
        leases = LeaseRepository(session)
        assert leases.beat(job_id, 1, LEASE, {"phase": "stale"}) is None
        assert not leases.end(job_id, 1, "failed")
        assert not leases.hand_back(job_id, 1, counted=False)
        assert not leases.set(job_id, 1, phase="stale")
        assert not leases.holds(job_id, 1)
        assert leases.beat(job_id, 2, LEASE, {"phase": "training"}) == Orders(cancel=False, pause=False)
    assert state(database, job_id).phase == "training"


def test_a_cancel_reaches_the_heartbeat_and_bars_the_claim(database: Database, job_id: str) -> None:
    claim(database)
    with database.unit_of_work() as session:
        jobs = JobRepository(session)
        row = jobs.get(job_id, lock=True)
        assert row is not None
        jobs.cancel(row)
    with database.unit_of_work() as session:
        assert LeaseRepository(session).beat(job_id, 1, LEASE, {}) == Orders(cancel=True, pause=False)
    expire(database, job_id)
    assert claim(database) is None


@pytest.mark.parametrize("change", [JobRepository.cancel, JobRepository.pause])
def test_a_job_that_ends_or_rests_while_it_is_being_claimed_stays_so(
    database: Database, job_id: str, change: Callable[[JobRepository, JobRow], None]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with database.unit_of_work() as session:
            jobs = JobRepository(session)
            row = jobs.get(job_id, lock=True)
            assert row is not None
            change(jobs, row)
            session.flush()
            claimed = pool.submit(claim, database)
            blocked = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            while not claimed.done() and not session.scalar(blocked):
                pass
        assert claimed.result(timeout=10) is None
    assert state(database, job_id).state in ("cancelled", "paused")


@pytest.mark.parametrize(("counted", "failures"), [(False, 1), (True, 2)])
def test_handing_back_counts_as_a_failure_only_if_it_was_one(
    database: Database, job_id: str, counted: bool, failures: int
) -> None:
    claim(database)
    with database.unit_of_work() as session:
        assert LeaseRepository(session).hand_back(job_id, 1, counted=counted) == "queued"
    again = claim(database)
    assert again is not None
    assert (again.attempt, again.fence, again.failures) == (2, 2, failures)


def test_a_retry_may_have_to_wait(database: Database, job_id: str) -> None:
    claim(database)
    with database.unit_of_work() as session:
        LeaseRepository(session).hand_back(job_id, 1, counted=True, after_seconds=60)
    assert claim(database) is None
    with database.unit_of_work() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(run_after=func.now()))
    assert claim(database) is not None


def test_saved_progress_forgives_earlier_failures(database: Database, job_id: str) -> None:
    for _ in range(5):
        job = claim(database)
        assert job is not None and job.failures == 1
        with database.unit_of_work() as session:
            assert LeaseRepository(session).set(job_id, job.fence, failures=0)
        expire(database, job_id)


def test_a_pause_waits_for_the_worker_and_survives_it(database: Database, job_id: str, context: WorkerContext) -> None:
    def change(how: Callable[[JobRepository, JobRow], None]) -> None:
        with database.unit_of_work() as session:
            jobs = JobRepository(session)
            row = jobs.get(job_id, lock=True)
            assert row is not None
            how(jobs, row)

    change(JobRepository.pause)
    assert state(database, job_id).state == "paused"
    assert claim(database) is None
    change(JobRepository.resume)
    claim(database)
    change(JobRepository.pause)
    with database.unit_of_work() as session:
        assert LeaseRepository(session).beat(job_id, 1, LEASE, {}) == Orders(cancel=False, pause=True)
        assert LeaseRepository(session).hand_back(job_id, 1, counted=False) == "paused"
    change(JobRepository.resume)
    claim(database)
    change(JobRepository.pause)
    expire(database, job_id)
    assert claim(database) is None
    bell = Bell(context.redis_url)
    reconcile_once(context, bell)
    bell.close()
    assert state(database, job_id).state == "paused"
    change(JobRepository.cancel)
    assert state(database, job_id).state == "cancelled"


def test_keys_take_turns_and_keep_to_their_quota(database: Database) -> None:
    finish_all(database)
    busy = [add_job(database, key_id="busy") for _ in range(5)]
    quiet = [add_job(database, key_id="quiet") for _ in range(2)]
    order = [claim(database, max_trainings=3) for _ in range(8)]
    got = [job.id for job in order if job]
    assert got == [busy[0], quiet[0], busy[1], quiet[1], busy[2]]
    with database.unit_of_work() as session:
        LeaseRepository(session).end(busy[0], 1, "succeeded")
    freed = claim(database, max_trainings=3)
    assert freed is not None and freed.id == busy[3]


def test_exports_and_trainings_are_claimed_apart(database: Database, context: WorkerContext) -> None:
    finish_all(database)
    training, export = add_job(database), add_job(database, kind="export")
    first, second = claim(database, kind="export"), claim(database, kind="export")
    assert first is not None and first.id == export and second is None
    bell = Bell(context.redis_url)
    assert reconcile_once(context, bell) == [training]
    bell.close()


def test_the_reconciler_rings_and_ends(database: Database, job_id: str, context: WorkerContext) -> None:
    bell = Bell(context.redis_url)
    assert job_id in reconcile_once(context, bell)
    assert job_id not in reconcile_once(context, bell)  # rung a moment ago
    for _ in range(3):
        assert claim(database) is not None
        expire(database, job_id)
    assert claim(database) is None  # no attempts left
    assert job_id not in reconcile_once(context, bell)
    bell.close()
    row = state(database, job_id)
    assert (row.state, row.error and row.error["code"]) == ("failed", "worker_lost")


def _publish(job: JobRow, context: WorkerContext, folder: Path) -> None:
    toy_artifact.build(folder / "artifact")
    (folder / "metrics.csv").write_text("step\n1\n")
    spec = TrainingSpec(
        job_id=job.id,
        task="text-classification",
        base_model="toy",
        base_model_path="-",
        base_model_revision="r1",
        datasets={"train": DatasetFile(file_id=job.training_file, path="-", format="jsonl", sha256="0" * 64)},
        seed=1,
        output=str(folder),
    )
    finished = Finished(
        metrics={"validation": {"accuracy": 1.0}},
        datasets={},
        parity={"max_abs_logit_diff": 0.0},
        trained_tokens=3,
        train_seconds=1.0,
        samples_per_second=1.0,
    )
    publish(job, spec, finished, stage(job, folder, context), context)


def test_publication_is_one_transaction_under_the_fence(
    database: Database, job_id: str, context: WorkerContext, tmp_path: Path
) -> None:
    stale = claim(database)
    expire(database, job_id)
    current = claim(database)
    assert stale is not None and current is not None
    _publish(stale, context, tmp_path / "stale")
    assert state(database, job_id).state == "running"
    _publish(current, context, tmp_path / "current")
    row = state(database, job_id)
    assert (row.state, row.trained_tokens) == ("succeeded", 3)
    with database.unit_of_work() as session:
        versions = list(session.scalars(select(VersionRow).where(VersionRow.job_id == job_id)))
        resolved = ModelRepository(session).resolve(row.model_name)
    assert [(v.number, v.artifact) for v in versions] == [(1, f"artifacts/{job_id}/2")]
    assert resolved is not None and resolved.ft_id == row.fine_tuned_model
