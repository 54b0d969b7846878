"""One attempt of a job by the trainer's parent, with a real child on a toy model: every way it can end."""

import dataclasses
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from app.core.settings import Settings
from app.registry.checkpoints import CheckpointRepository
from app.registry.files import FileRepository
from app.registry.jobs import JobRepository
from app.registry.leases import LeaseRepository
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import CheckpointRow, FileRow, JobEventRow, JobRow, VersionRow
from app.services.profiling import profile_rows
from model_store.checkpoints import sealed_folders
from model_store.store import Store
from tests.integration.helpers import finish_all, jsonl
from tests.toys import build_toy_base, text_rows
from workers import checkpoints, lifecycle
from workers.context import WorkerContext
from workers.ledger import Ledger


@pytest.fixture
def context(database: Database, settings: Settings, tmp_path: Path) -> WorkerContext:
    assert settings.redis_url
    finish_all(database)
    (tmp_path / "models").mkdir()
    build_toy_base(tmp_path / "models" / "toy")
    values = {"home": tmp_path / "home", "models": tmp_path / "models", "heartbeat_seconds": 0.1, "max_attempts": 2}
    return WorkerContext(settings.model_copy(update=values), database, Store(tmp_path / "store"), settings.redis_url)


@pytest.fixture
def make_job(context: WorkerContext) -> Callable[..., str]:
    """A queued job over stored rows."""

    def make(
        name: str,
        *,
        rows: int = 60,
        epochs: int = 2,
        base: str = "toy",
        labels: int | None = None,
        checkpoint: dict[str, Any] | None = None,
    ) -> str:
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
                        "checkpoint": checkpoint or {},
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


def steps_of(row: JobRow) -> int:
    return int((row.progress or {}).get("step", 0))


def messages(context: WorkerContext, job_id: str) -> list[str]:
    with context.database.unit_of_work() as session:
        query = select(JobEventRow.message).where(JobEventRow.job_id == job_id).order_by(JobEventRow.number)
        return list(session.scalars(query))


def when_training(context: WorkerContext, job_id: str, act: Callable[[], None], step: int = 1) -> threading.Thread:
    """Do `act` once the job has taken so many steps; the thread that waits for it."""
    wait = threading.Event()

    def watch() -> None:
        while steps_of(row := job_row(context, job_id)) < step:
            if row.finished_at is not None:
                return
            wait.wait(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_job_becomes_a_version(context: WorkerContext, make_job: Callable[..., str]) -> None:
    job_id = make_job("becomes")
    lifecycle.run_waiting(context)
    row = job_row(context, job_id)
    assert (row.state, row.error) == ("succeeded", None)
    assert row.progress and row.progress["percent"] == 100.0
    assert row.resolved and row.resolved["total_steps"] == row.progress["total_steps"]
    said = messages(context, job_id)
    assert said[0] == "Attempt 1 started"
    assert said[-1].startswith("New model version becomes:1 is ready")
    assert any(m.startswith(f"Step {row.progress['step']}/") for m in said)
    assert not list((context.settings.home / "work").iterdir())
    assert lifecycle.run_waiting(context) == 0  # a second copy of the message finds nothing to do
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
    lifecycle.run_waiting(context)
    thread.join()
    row = job_row(context, job_id)
    assert (row.state, row.error) == ("cancelled", None)
    assert messages(context, job_id)[-1] == "The job was cancelled"


def run_once(context: WorkerContext) -> None:
    """One attempt."""
    job = lifecycle.claim(context)
    assert job is not None
    lifecycle.run(job, context)


def kill_child(job_id: str, sig: signal.Signals = signal.SIGKILL) -> None:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if job_id in (entry / "cmdline").read_text():
                os.kill(int(entry.name), sig)
        except OSError:
            continue


def weights(context: WorkerContext, job_id: str) -> bytes:
    with context.database.unit_of_work() as session:
        version = session.scalars(select(VersionRow).where(VersionRow.job_id == job_id)).unique().one()
    return context.store.path(version.artifact).joinpath("model.safetensors").read_bytes()


def table(context: WorkerContext, job_id: str) -> str:
    return context.store.path(f"files/{job_row(context, job_id).result_file}").read_text()


LONG = {"epochs": 30, "checkpoint": {"every_steps": 4, "keep": 2}}


def test_a_stopped_paused_and_killed_job_ends_with_the_same_bits(
    context: WorkerContext, make_job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_job("whole", **LONG)
    lifecycle.run_waiting(context)
    job_id = make_job("broken", **LONG)

    monkeypatch.setattr(lifecycle, "stopping", threading.Event())
    thread = when_training(context, job_id, lifecycle.stopping.set)
    lifecycle.run_waiting(context)
    thread.join()
    row = job_row(context, job_id)
    assert (row.state, row.attempt, row.failures, row.owner) == ("queued", 1, 0, None)
    lifecycle.stopping.clear()

    thread = when_training(context, job_id, lambda: kill_child(job_id), step=steps_of(row) + 5)
    run_once(context)
    thread.join()
    row = job_row(context, job_id)
    assert (row.state, row.attempt) == ("queued", 2)

    def pause() -> None:
        with context.database.unit_of_work() as session:
            jobs = JobRepository(session)
            found = jobs.get(job_id, lock=True)
            assert found is not None
            jobs.pause(found)

    thread = when_training(context, job_id, pause, step=steps_of(row) + 5)
    lifecycle.run_waiting(context)
    thread.join()
    assert job_row(context, job_id).state == "paused"
    assert lifecycle.run_waiting(context, "export") == 1
    with context.database.unit_of_work() as session:
        kept = CheckpointRepository(session).of(job_id)
        export = ModelRepository(session).resolve(kept[0].ft_id)
        jobs = JobRepository(session)
        found = jobs.get(job_id, lock=True)
        assert found is not None
        jobs.resume(found)
    assert kept[0].reason in ("stop", "epoch") and len(kept) == 2
    assert export is not None and export.number is None and export.label == kept[0].ft_id

    lifecycle.run_waiting(context)
    row = job_row(context, job_id)
    assert (row.state, row.attempt) == ("succeeded", 4)
    assert weights(context, job_id) == weights(context, whole)
    assert table(context, job_id) == table(context, whole)
    resumed = [m for m in messages(context, job_id) if m.startswith("Resumed after step")]
    assert len(resumed) == 3


def test_a_corrupt_checkpoint_is_passed_over(context: WorkerContext, make_job: Callable[..., str]) -> None:
    whole = make_job("sound", **LONG)
    lifecycle.run_waiting(context)
    job_id = make_job("corrupt", **LONG)
    thread = when_training(context, job_id, lambda: kill_child(job_id), step=12)
    run_once(context)
    thread.join()
    with context.database.unit_of_work() as session:
        newest, before = CheckpointRepository(session).of(job_id)
    damaged = context.store.path(newest.key) / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    lifecycle.run_waiting(context)
    said = messages(context, job_id)
    assert any(m.startswith(f"The checkpoint at step {newest.step} is corrupt") for m in said)
    assert f"Resumed after step {before.step}" in said
    assert weights(context, job_id) == weights(context, whole)


def test_without_a_sound_checkpoint_the_job_fails_and_says_so(
    context: WorkerContext, make_job: Callable[..., str]
) -> None:
    job_id = make_job("rotten", **LONG)
    thread = when_training(context, job_id, lambda: kill_child(job_id), step=12)
    run_once(context)
    thread.join()
    for manifest in context.store.path(f"checkpoints/{job_id}").rglob("manifest.json"):
        manifest.write_text(manifest.read_text().replace("train_loss", "train_l0ss"))
    lifecycle.run_waiting(context)
    row = job_row(context, job_id)
    assert (row.state, row.error and row.error["code"]) == ("failed", "checkpoint_corrupt")


def test_a_checkpoint_that_nobody_told_of_is_adopted(context: WorkerContext, make_job: Callable[..., str]) -> None:
    """Its worker died between sealing and telling; what it seals after the next claim is never looked at."""
    job_id = make_job("untold", **LONG)
    thread = when_training(context, job_id, lambda: kill_child(job_id), step=12)
    run_once(context)
    thread.join()
    with context.database.unit_of_work() as session:
        told = {row.key for row in CheckpointRepository(session).of(job_id)}
        session.execute(delete(CheckpointRow).where(CheckpointRow.job_id == job_id))
    folder = f"checkpoints/{job_id}/1"
    keys = {f"{folder}/{path.name}" for path in sealed_folders(context.store.path(folder))}
    assert told and told <= keys  # the kill may have come between sealing and telling
    claimed = lifecycle.claim(context)
    assert claimed is not None
    checkpoints.adopt(claimed, Ledger(), context)
    with context.database.unit_of_work() as session:
        assert {r.key for r in CheckpointRepository(session).of(job_id)} == keys
    stale = context.store.path(max(keys))
    shutil.copytree(stale, stale.with_name("step-00000999"))
    with context.database.unit_of_work() as session:
        LeaseRepository(session).hand_back(job_id, claimed.fence, counted=True)
    claimed = lifecycle.claim(context)
    assert claimed is not None
    checkpoints.adopt(claimed, Ledger(), context)
    with context.database.unit_of_work() as session:
        assert {r.key for r in CheckpointRepository(session).of(job_id)} == keys
        LeaseRepository(session).end(job_id, claimed.fence, "failed")


def test_a_child_that_is_always_killed_is_given_up(context: WorkerContext, make_job: Callable[..., str]) -> None:
    job_id = make_job("killed", epochs=1000, checkpoint={"every_seconds": 3600, "every_steps": 1_000_000})
    context = dataclasses.replace(context, settings=context.settings)
    stop = threading.Event()

    def keep_killing() -> None:
        while not stop.wait(0.2):
            kill_child(job_id)

    thread = threading.Thread(target=keep_killing)
    thread.start()
    assert lifecycle.run_waiting(context) == 2
    stop.set()
    thread.join()
    row = job_row(context, job_id)
    assert (row.state, row.attempt, row.error and row.error["code"]) == ("failed", 2, "worker_lost")


def test_a_child_that_hangs_is_killed_and_its_job_tried_again(
    context: WorkerContext, make_job: Callable[..., str]
) -> None:
    job_id = make_job("hangs", epochs=1000)
    settings = context.settings.model_copy(update={"hang_seconds": 8.0})
    thread = when_training(context, job_id, lambda: kill_child(job_id, signal.SIGSTOP), step=40)
    run_once(dataclasses.replace(context, settings=settings))
    thread.join()
    assert job_row(context, job_id).state == "queued"
    assert any("said nothing for 8 s" in m for m in messages(context, job_id))


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
    lifecycle.run_waiting(context)
    row = job_row(context, job_id)
    assert row.state == "failed" and row.error is not None
    assert row.error["code"] == code
    assert words in row.error["message"]
