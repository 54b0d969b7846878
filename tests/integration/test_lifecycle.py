"""The claim, the fence and the end of a job, against real Postgres; publication against a real store."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from app.contracts.training import DatasetFile, Finished, TrainingSpec
from app.core.ids import new_id
from app.core.queue import Bell
from app.core.settings import Settings
from app.registry.files import FileRepository
from app.registry.jobs import JobRepository
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import FileRow, JobRow, VersionRow
from model_store.store import Store
from tests import toy_artifact
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
    with database.unit_of_work() as session:
        file = FileRow(id=new_id("file-"), filename="f", purpose="fine-tune", bytes=1, sha256="0" * 64)
        FileRepository(session).add(file)
        row = JobRow(
            id=new_id("ftjob-"),
            kind="training",
            task="text-classification",
            base_model="toy",
            model_name=f"m-{file.id[-8:]}",
            seed=1,
            training_file=file.id,
            request={},
            max_attempts=3,
        )
        JobRepository(session).add(row)
    return row.id


def claim(database: Database, job_id: str) -> JobRow | None:
    with database.unit_of_work() as session:
        return JobRepository(session).claim(job_id, "me", LEASE)


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
        claims = list(pool.map(lambda _: claim(database, job_id), range(10)))
    won = [c for c in claims if c is not None]
    assert [(c.attempt, c.fence) for c in won] == [(1, 1)]


def test_a_stale_worker_writes_nothing(database: Database, job_id: str) -> None:
    first = claim(database, job_id)
    expire(database, job_id)
    second = claim(database, job_id)
    assert first is not None and second is not None
    assert (second.attempt, second.fence) == (2, 2)
    with database.unit_of_work() as session:
        jobs = JobRepository(session)
        assert jobs.beat(job_id, 1, LEASE, {"phase": "stale"}) is None
        assert not jobs.end(job_id, 1, "failed")
        assert not jobs.hand_back(job_id, 1, counted=False)
        assert jobs.beat(job_id, 2, LEASE, {"phase": "training"}) is False
    assert state(database, job_id).phase == "training"


def test_a_cancel_reaches_the_heartbeat_and_bars_the_claim(database: Database, job_id: str) -> None:
    claim(database, job_id)
    with database.unit_of_work() as session:
        jobs = JobRepository(session)
        row = jobs.get(job_id, lock=True)
        assert row is not None
        jobs.cancel(row)
    with database.unit_of_work() as session:
        assert JobRepository(session).beat(job_id, 1, LEASE, {}) is True
    expire(database, job_id)
    assert claim(database, job_id) is None


def test_handing_back_costs_no_attempt(database: Database, job_id: str) -> None:
    claim(database, job_id)
    with database.unit_of_work() as session:
        assert JobRepository(session).hand_back(job_id, 1, counted=False)
    again = claim(database, job_id)
    assert again is not None
    assert (again.attempt, again.fence) == (1, 2)


def test_the_reconciler_rings_and_ends(database: Database, job_id: str, context: WorkerContext) -> None:
    bell = Bell(context.redis_url)
    assert job_id in reconcile_once(context, bell)
    assert job_id not in reconcile_once(context, bell)  # rung a moment ago
    for _ in range(3):
        assert claim(database, job_id) is not None
        expire(database, job_id)
    assert claim(database, job_id) is None  # no attempts left
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
    stale = claim(database, job_id)
    expire(database, job_id)
    current = claim(database, job_id)
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
