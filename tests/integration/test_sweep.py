"""What the sweep removes, and what must survive it: every combination of row, job and age, in one real store."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.ids import new_id
from app.core.settings import Settings
from app.registry.session import Database
from app.registry.sweep import SweepRepository
from app.registry.tables import (
    Base,
    CheckpointRow,
    CreationRow,
    FileRow,
    JobRow,
    ModelRow,
    UploadPartRow,
    UploadRow,
    VersionRow,
    WebhookDeliveryRow,
    WebhookEndpointRow,
)
from model_store.store import Store
from workers.context import WorkerContext
from workers.sweep import clean_work, sweep_once

OLD, NEW = timedelta(hours=3), timedelta(minutes=5)


def ago(age: timedelta) -> datetime:
    return datetime.now(UTC) - age


class World:
    """Rows and bytes, made as old as a test wants them."""

    def __init__(self, context: WorkerContext) -> None:
        self.context, self.store, self.database = context, context.store, context.database
        self.jobs: list[str] = []
        self.model = self.add(ModelRow(id=new_id("model-"), name=new_id("m"), name_key=new_id("m"), task="t"))
        self.data = self.file()

    def add(self, row: Base) -> str:
        with self.database.unit_of_work() as session:
            session.add(row)
            session.flush()
        return str(getattr(row, "id", ""))

    def change(self, table: type[Any], row_id: str, **values: Any) -> None:
        with self.database.unit_of_work() as session:
            session.execute(update(table).where(table.id == row_id).values(**values))

    def get(self, table: type[Any], row_id: str) -> Any:
        with self.database.unit_of_work() as session:
            return session.scalars(select(table).where(table.id == row_id)).unique().one()

    def file(self, **values: Any) -> str:
        fixed = {"filename": "f", "purpose": "fine-tune", "bytes": 1, "sha256": "0" * 64}
        return self.add(FileRow(**{"id": new_id("file-"), **fixed, **values}))

    def job(self, state: str = "queued", **values: Any) -> str:
        fixed = {"task": "t", "base_model": "b", "model_name": "m", "seed": 1, "request": {}}
        values = {
            "kind": "training",
            "training_file": self.data,
            "max_attempts": 3,
            "fence": 2,
            "adopted_fence": 1,
            **values,
        }
        if state in ("succeeded", "failed", "cancelled"):
            values = {"finished_at": ago(NEW), **values}
        self.jobs.append(self.add(JobRow(id=new_id("ftjob-"), state=state, **fixed, **values)))
        return self.jobs[-1]

    def version(self, job: str, key: str, **values: Any) -> str:
        fixed = {"task": "t", "base_model": "b", "base_revision": "r", "digest": "d", "code_version": "c"}
        empty: dict[str, Any] = {name: {} for name in ("serving", "metrics", "datasets", "recipe", "parity", "sizes")}
        row = VersionRow(
            id=new_id("ver-"),
            ft_id=new_id("ft:"),
            model_id=self.model,
            job_id=job,
            artifact=key,
            **fixed,
            **empty,
            **values,
        )
        return self.add(row)

    def checkpoint(self, job: str, key: str, **values: Any) -> str:
        _, _, fence, step = key.split("/")
        return self.add(
            CheckpointRow(
                id=new_id("ftckpt-"),
                job_id=job,
                fence=int(fence),
                step=int(step.removeprefix("step-")),
                reason="interval",
                key=key,
                digest="d",
                bytes=1,
                metrics={},
                ft_id=new_id("ft:"),
                **values,
            )
        )

    def put(self, key: str, age: timedelta = OLD) -> str:
        """A file at `key`, whose whole path is of the age."""
        self.store.put(key, io.BytesIO(b"x"), 10)
        path, then = self.store.path(key), ago(age).timestamp()
        while path != self.store.root:
            os.utime(path, (then, then))
            path = path.parent
        return key

    def folder(self, key: str, age: timedelta = OLD) -> str:
        self.put(f"{key}/manifest.json", age)
        return key

    def left(self, keys: list[str]) -> set[str]:
        return {key for key in keys if self.store.path(key).exists()}

    def sweep(self) -> dict[str, int]:
        done = sweep_once(self.context)
        assert done is not None
        return done


@pytest.fixture
def world(database: Database, settings: Settings, tmp_path: Path) -> Iterator[World]:
    assert settings.redis_url
    made = World(WorkerContext(settings, database, Store(tmp_path / "store"), settings.redis_url))
    yield made
    for job in made.jobs:  # a job that runs keeps files of its time, in other tests too
        made.change(JobRow, job, state="cancelled", finished_at=ago(NEW))


def test_files(world: World) -> None:
    fates: dict[str, bool] = {}
    rows: dict[str, tuple[dict[str, Any], bool, bool]] = {  # values, needed by a job, whether the bytes stay
        "live": ({}, False, True),
        "expires later": ({"expires_at": ago(-OLD)}, False, True),
        "just expired": ({"expires_at": ago(NEW)}, False, True),
        "expired, needed": ({"expires_at": ago(OLD)}, True, True),
        "deleted": ({"deleted_at": ago(OLD)}, False, False),
        "just deleted": ({"deleted_at": ago(NEW)}, False, True),
        "deleted, needed": ({"deleted_at": ago(OLD)}, True, True),
    }
    for (values, needed, stays), age in product(rows.values(), (OLD, NEW)):
        file = world.file(**values)
        fates[world.put(f"files/{file}", age)] = stays
        if needed:
            split = ("training_file", "validation_file", "test_file")[len(fates) % 3]
            world.job("paused", **{split: file})
    fates[world.put(f"files/{new_id('file-')}", OLD)] = False
    fates[world.put(f"files/{new_id('file-')}", NEW)] = True
    for _ in range(2):  # sweeping again changes nothing
        world.sweep()
        assert world.left([*fates]) == {key for key, stays in fates.items() if stays}


def test_an_expired_file_is_marked_first_and_its_bytes_go_later(world: World) -> None:
    file = world.file(expires_at=ago(NEW))
    needed = world.file(expires_at=ago(NEW))
    job = world.job("running", claimed_at=ago(NEW), validation_file=needed)
    keys = [world.put(f"files/{file}"), world.put(f"files/{needed}")]
    world.sweep()
    assert world.get(FileRow, file).deleted_at and not world.get(FileRow, needed).deleted_at
    assert world.left(keys) == set(keys)
    world.change(FileRow, file, deleted_at=ago(OLD))
    world.sweep()
    assert world.left(keys) == {keys[1]}
    world.change(JobRow, job, state="failed", finished_at=ago(NEW))
    world.sweep()
    assert world.get(FileRow, needed).deleted_at


def test_a_publication_under_way_keeps_its_bytes(world: World) -> None:
    """Between the store and the row Postgres may be away for hours: the job then still runs under its fence."""
    job = world.job("running", claimed_at=ago(timedelta(days=2)))
    world.put(f"files/{world.data}")
    csv, artifact = world.put(f"files/{new_id('file-')}"), world.folder(f"artifacts/{job}/2")
    stale = world.folder(f"artifacts/{job}/1")
    world.sweep()
    assert world.left([csv, artifact, stale]) == {csv, artifact}
    world.add(FileRow(id=csv[6:], filename="f", purpose="fine-tune-results", bytes=1, sha256="0"))
    version = world.version(job, artifact, number=1)
    world.change(JobRow, job, state="succeeded", finished_at=ago(OLD), result_file=csv[6:])
    world.sweep()
    assert world.left([csv, artifact]) == {csv, artifact}
    assert world.get(VersionRow, version).collected_at is None


def test_a_row_written_while_the_store_is_listed_saves_its_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put(f"files/{world.data}")
    file, job = new_id("file-"), world.job("running", claimed_at=ago(OLD))
    artifact, csv = world.folder(f"artifacts/{job}/2"), world.put(f"files/{file}")
    listing = Store.entries

    def publish_now(store: Store, prefix: str) -> Any:
        found = listing(store, prefix)
        if prefix == "files":
            world.add(FileRow(id=file, filename="f", purpose="fine-tune-results", bytes=1, sha256="0"))
            world.version(job, artifact, number=7)
            world.change(JobRow, job, state="succeeded", finished_at=ago(NEW))
        return found

    monkeypatch.setattr(Store, "entries", publish_now)
    world.sweep()
    assert world.left([artifact, csv]) == {artifact, csv}


def test_uploads(world: World) -> None:
    fates: dict[str, bool] = {}
    for status, (expires, stays) in product(
        ("pending", "completed", "cancelled", "expired"), ((ago(OLD), False), (ago(NEW), True), (ago(-OLD), True))
    ):
        row = UploadRow(id=new_id("upload_"), filename="f", purpose="p", bytes=1, status=status, expires_at=expires)
        upload = world.add(row)
        part = world.add(UploadPartRow(id=new_id("part_"), upload_id=upload, bytes=1))
        world.put(f"uploads/{upload}/{part}")
        fates[f"uploads/{upload}"] = stays
        if status == "pending":
            world.sweep()
            assert world.get(UploadRow, upload).status == ("pending" if expires > datetime.now(UTC) else "expired")
    rows = [*fates]
    for age in (OLD, NEW):
        fates[world.put(f"uploads/{new_id('upload_')}/part_x", age).rpartition("/")[0]] = age is NEW
    world.sweep()
    assert world.left([*fates]) == {key for key, stays in fates.items() if stays}
    with world.database.unit_of_work() as session:
        known = {f"uploads/{upload}" for upload in session.scalars(select(UploadPartRow.upload_id))}
    assert known & set(rows) == {key for key in rows if fates[key]}


def test_artifacts(world: World) -> None:
    fates: dict[str, bool] = {}
    deleted = {"none": None, "no": None, "just": ago(NEW), "long": ago(OLD)}
    for number, (state, fence, age, row) in enumerate(
        product(("queued", "running", "paused", "succeeded"), (1, 2), (OLD, NEW), deleted), start=1
    ):
        job = world.job(state, claimed_at=ago(NEW))
        key = world.folder(f"artifacts/{job}/{fence}", age)
        if row == "none":
            fates[key] = age is NEW or (state == "running" and fence == 2)
        else:
            world.version(job, key, number=number, deleted_at=deleted[row])
            fates[key] = row != "long"
    world.sweep()
    assert world.left([*fates]) == {key for key, stays in fates.items() if stays}


def test_a_deleted_version_stays_while_a_job_starts_from_it(world: World) -> None:
    keys, versions = [], []
    for number in range(3):
        trained = world.job("succeeded")
        keys.append(world.folder(f"artifacts/{trained}/2"))
        versions.append(world.version(trained, keys[-1], number=number + 1, deleted_at=ago(OLD)))
    base = world.job("queued", base_version=versions[0])
    second = world.job("succeeded", base_version=versions[1])  # done with it, but its checkpoint is exported now
    checkpoint = world.checkpoint(second, world.folder(f"checkpoints/{second}/2/step-00000010"))
    export = world.job("running", kind="export", claimed_at=ago(NEW), from_checkpoint=checkpoint)
    world.sweep()
    assert world.left(keys) == set(keys[:2])
    assert [world.get(VersionRow, v).collected_at is not None for v in versions] == [False, False, True]
    for job in (base, export):
        world.change(JobRow, job, state="cancelled", finished_at=ago(NEW))
    world.sweep()
    assert not world.left(keys)
    assert all(world.get(VersionRow, v).collected_at for v in versions)


def test_checkpoints(world: World) -> None:
    fates: dict[str, bool] = {}
    deleted = {"none": None, "no": None, "just": ago(NEW), "long": ago(OLD), "needed": ago(OLD)}
    for state, fence, age, row in product(("queued", "running", "paused", "failed"), (1, 2), (OLD, NEW), deleted):
        job = world.job(state, claimed_at=ago(NEW))
        key = world.folder(f"checkpoints/{job}/{fence}/step-00000010", age)
        if row == "none":  # under fence 2 an unfinished job may still adopt it; half-written ones go the same way
            half = world.folder(f"checkpoints/{job}/{fence}/.{'0' * 32}", age)
            fates[key] = fates[half] = age is NEW or (state != "failed" and fence == 2)
            continue
        checkpoint = world.checkpoint(job, key, deleted_at=deleted[row])
        fates[key] = row != "long"
        if row == "needed":
            world.job("paused", from_checkpoint=checkpoint)
    world.sweep()
    assert world.left([*fates]) == {key for key, stays in fates.items() if stays}
    for job in world.jobs:  # folders of ended jobs do not pile up; those of others may be written to
        kept = any(stays and f"/{job}/" in key for key, stays in fates.items())
        path = world.store.path(f"checkpoints/{job}")
        assert not path.exists() or kept or world.get(JobRow, job).finished_at is None


def test_checkpoints_outlive_their_job_for_the_days_set(world: World) -> None:
    days = timedelta(days=world.context.settings.checkpoint_retention_days)
    keys, rows = [], []
    for ended in (days - timedelta(hours=1), days + timedelta(hours=1), days + timedelta(hours=1)):
        job = world.job("succeeded", finished_at=ago(ended))
        keys.append(world.folder(f"checkpoints/{job}/2/step-00000010"))
        rows.append(world.checkpoint(job, keys[-1]))
    export = world.job("queued", kind="export", from_checkpoint=rows[2])
    world.sweep()
    assert [world.get(CheckpointRow, row).deleted_at is not None for row in rows] == [False, True, False]
    assert world.left(keys) == set(keys)  # marked; whoever reads it now may read on for an hour
    world.change(CheckpointRow, rows[1], deleted_at=ago(OLD))
    world.sweep()
    assert world.left(keys) == {keys[0], keys[2]}
    world.change(JobRow, export, state="failed", finished_at=ago(NEW))
    world.sweep()
    assert world.get(CheckpointRow, rows[2]).deleted_at is not None


def test_writes_that_died(world: World) -> None:
    day = timedelta(hours=25)
    keys = [world.put("tmp/" + "a" * 32, day), world.folder("tmp/" + "b" * 32, day), world.put("tmp/" + "c" * 32, OLD)]
    world.sweep()
    assert world.left(keys) == {keys[2]}


def test_rows_past_their_time(world: World) -> None:
    endpoint = world.add(WebhookEndpointRow(id=new_id("we_"), name="n", url="u", event_types=[], secret="s"))
    week = timedelta(days=7, hours=1)
    for finished, made in ((ago(week), week), (ago(OLD), week), (None, week)):
        world.add(
            WebhookDeliveryRow(
                endpoint_id=endpoint,
                event_id=new_id("evt_"),
                event_type="t",
                subject="s",
                created_at=ago(made),
                finished_at=finished,
            )
        )
    key = endpoint[:32]
    for hours in (49, 47):
        row = CreationRow(key_id=key, idempotency_key=str(hours), fingerprint="f", answer="")
        row.created_at = ago(timedelta(hours=hours))
        world.add(row)
    world.sweep()
    with world.database.unit_of_work() as session:
        deliveries = session.scalars(
            select(WebhookDeliveryRow.finished_at).where(WebhookDeliveryRow.endpoint_id == endpoint)
        ).all()
        kept = session.scalars(select(CreationRow.idempotency_key).where(CreationRow.key_id == key)).all()
    assert len(deliveries) == 2 and None in deliveries
    assert kept == ["47"]


def test_a_store_of_another_database_is_left_alone(world: World) -> None:
    """An empty database beside a full store is a mistake in a URL, not a reason to delete models."""
    keys = [
        world.put(f"files/{new_id('file-')}"),
        world.folder(f"artifacts/{new_id('ftjob-')}/1"),
        world.folder(f"checkpoints/{new_id('ftjob-')}/1/step-00000001"),
    ]
    world.sweep()
    assert world.left(keys) == set(keys)


def test_one_worker_sweeps(world: World) -> None:
    with world.database.unit_of_work() as session:
        assert SweepRepository(session).lead()
        assert sweep_once(world.context) is None
    assert sweep_once(world.context) is not None


def test_work_folders_of_dead_workers_go(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    for name in (f"{dead.pid}-ftjob-a-1", f"{os.getpid()}-ftjob-b-1", "1-ftjob-c-1", "notes"):
        (tmp_path / "work" / name / "deep").mkdir(parents=True)
    assert clean_work(tmp_path) == [f"{dead.pid}-ftjob-a-1"]
    assert {f.name for f in (tmp_path / "work").iterdir()} == {f"{os.getpid()}-ftjob-b-1", "1-ftjob-c-1", "notes"}
    assert clean_work(tmp_path / "nowhere") == []
