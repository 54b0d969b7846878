"""One attempt of a job by the trainer's parent, with a real child on a toy model: every way it can end."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.settings import Settings
from app.registry.files import FileRepository
from app.registry.jobs import JobRepository
from app.registry.session import Database
from app.registry.tables import FileRow, JobEventRow, JobRow, VersionRow
from app.services.profiling import profile_rows
from model_store.store import Store
from tests.integration.helpers import jsonl
from tests.toys import build_toy_base, text_rows
from workers import lifecycle
from workers.context import WorkerContext


@pytest.fixture
def context(database: Database, settings: Settings, tmp_path: Path) -> WorkerContext:
    assert settings.redis_url
    (tmp_path / "models").mkdir()
    build_toy_base(tmp_path / "models" / "toy")
    values = {"home": tmp_path / "home", "models": tmp_path / "models", "heartbeat_seconds": 0.1, "max_attempts": 2}
    return WorkerContext(settings.model_copy(update=values), database, Store(tmp_path / "store"), settings.redis_url)


@pytest.fixture
def make_job(context: WorkerContext) -> Callable[..., str]:
    """A queued job over stored rows."""

    def make(name: str, rows: int = 60, epochs: int = 2, base: str = "toy", labels: int | None = None) -> str:
        data = text_rows(rows)
        if labels == 0:  # text that no tokenizer keeps anything of
            data = [{**row, "text": "\u200b" * (i + 1)} for i, row in enumerate(data)]
        path = context.settings.home / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jsonl(data))
        with path.open("rb") as source:
            stored = context.store.put(f"files/file-{name}", source, 1 << 30)
        with path.open("rb") as source:
            profile = profile_rows(source, "jsonl").model_dump(mode="json")
        with context.database.unit_of_work() as session:
            FileRepository(session).add(
                FileRow(
                    id=f"file-{name}",
                    filename="f",
                    purpose="fine-tune",
                    bytes=stored.bytes,
                    sha256=stored.sha256,
                    profile=profile,
                )
            )
            JobRepository(session).add(
                JobRow(
                    id=f"ftjob-{name}",
                    kind="training",
                    task="text-classification",
                    base_model=base,
                    model_name=name,
                    seed=1,
                    training_file=f"file-{name}",
                    request={
                        "multi_label": False,
                        "peft": {"type": "full"},
                        "hyperparameters": {"n_epochs": epochs},
                        "early_stopping": None,
                        "dataset": {},
                    },
                    max_attempts=context.settings.max_attempts,
                )
            )
        return f"ftjob-{name}"

    return make


def job_row(context: WorkerContext, job_id: str) -> JobRow:
    with context.database.unit_of_work() as session:
        row = JobRepository(session).get(job_id)
    assert row is not None
    return row


def messages(context: WorkerContext, job_id: str) -> list[str]:
    with context.database.unit_of_work() as session:
        query = select(JobEventRow.message).where(JobEventRow.job_id == job_id).order_by(JobEventRow.number)
        return list(session.scalars(query))


def when_training(context: WorkerContext, job_id: str, act: Callable[[], None]) -> threading.Thread:
    """Do `act` once the job has taken a step; the thread that waits for it."""
    wait = threading.Event()

    def watch() -> None:
        while not (job_row(context, job_id).progress or {}).get("step"):
            wait.wait(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_job_becomes_a_version(context: WorkerContext, make_job: Callable[..., str]) -> None:
    job_id = make_job("becomes")
    lifecycle.run(job_id, context)
    row = job_row(context, job_id)
    assert (row.state, row.error) == ("succeeded", None)
    assert row.progress and row.progress["percent"] == 100.0
    assert row.resolved and row.resolved["total_steps"] == row.progress["total_steps"]
    said = messages(context, job_id)
    assert said[0] == "Attempt 1 of 2 started"
    assert said[-1].startswith("New model version becomes:1 is ready")
    assert any(m.startswith(f"Step {row.progress['step']}/") for m in said)
    assert not (context.settings.home / "work" / job_id).exists()
    lifecycle.run(job_id, context)  # a second copy of the message finds nothing to do
    with context.database.unit_of_work() as session:
        versions = list(session.scalars(select(VersionRow).where(VersionRow.job_id == job_id)).unique())
    assert [v.number for v in versions] == [1]
    assert context.store.path(versions[0].artifact).joinpath("model.onnx").exists()


def test_a_cancel_stops_the_child(context: WorkerContext, make_job: Callable[..., str]) -> None:
    job_id = make_job("cancelled", epochs=1000)

    def cancel() -> None:
        with context.database.unit_of_work() as session:
            jobs = JobRepository(session)
            row = jobs.get(job_id, lock=True)
            assert row is not None
            jobs.cancel(row)

    thread = when_training(context, job_id, cancel)
    lifecycle.run(job_id, context)
    thread.join()
    row = job_row(context, job_id)
    assert (row.state, row.error) == ("cancelled", None)
    assert messages(context, job_id)[-1] == "The job was cancelled"


def test_a_stopping_worker_hands_its_job_back(
    context: WorkerContext, make_job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "stopping", threading.Event())
    job_id = make_job("handed-back", epochs=1000)
    thread = when_training(context, job_id, lifecycle.stopping.set)
    lifecycle.run(job_id, context)
    thread.join()
    row = job_row(context, job_id)
    assert (row.state, row.attempt, row.owner) == ("queued", 0, None)


def test_a_killed_child_is_tried_again_and_then_given_up(context: WorkerContext, make_job: Callable[..., str]) -> None:
    job_id = make_job("killed", epochs=1000)

    def kill() -> None:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if job_id in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue

    thread = when_training(context, job_id, kill)
    lifecycle.run(job_id, context)
    thread.join()
    assert (job_row(context, job_id).state, job_row(context, job_id).attempt) == ("queued", 1)
    with context.database.unit_of_work() as session:
        row = JobRepository(session).get(job_id)
        assert row is not None
        row.progress = None
    thread = when_training(context, job_id, kill)
    lifecycle.run(job_id, context)
    thread.join()
    row = job_row(context, job_id)
    assert (row.state, row.error and row.error["code"]) == ("failed", "worker_lost")


@pytest.mark.parametrize(
    ("name", "options", "code", "words"),
    [
        ("no-tokens", {"labels": 0}, "invalid_dataset", "no row has a token"),
        ("no-base", {"base": "gone"}, "base_model", "gone"),
    ],
)
def test_what_only_the_trainer_can_find_fails_with_its_reason(  # noqa: PLR0917  (one row of the table above)
    context: WorkerContext, make_job: Callable[..., str], name: str, options: dict[str, object], code: str, words: str
) -> None:
    job_id = make_job(name, **options)
    lifecycle.run(job_id, context)
    row = job_row(context, job_id)
    assert row.state == "failed" and row.error is not None
    assert row.error["code"] == code
    assert words in row.error["message"]
