"""Batches whose runner crashes, stops, sleeps, races or is told to stop: real rows, a real store, scripted answers."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, func, select, text, update

from app.api.inprocess import InProcess
from app.auth.keys import KeyService
from app.contracts.batches import BatchRequest
from app.core.creation import Creation
from app.core.errors import QuotaExceeded
from app.core.ids import new_id
from app.core.settings import Settings
from app.main import create_app
from app.registry.batches import BatchRepository
from app.registry.session import Database
from app.registry.sweep import SweepRepository
from app.registry.tables import BatchRow, FileRow
from app.services.batch_lines import Answer
from app.services.batch_run import BatchContext, BatchRun
from app.services.batch_runner import BatchRunner
from app.services.batches import BatchService
from model_store.store import Store
from tests.integration.helpers import error, jsonl

ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(autouse=True)
def _clean(database: Database) -> Iterator[None]:
    yield
    with database.unit_of_work() as session:
        session.execute(delete(BatchRow))


class Asked:
    """Answers every line at once, unless `hold` says to wait; counts what was asked."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.hold: Callable[[str], Awaitable[None]] | None = None
        self.script: dict[str, list[Answer]] = {}

    async def __call__(self, endpoint: str, body: bytes, key_id: str) -> Answer:
        name = json.loads(body)["name"]
        self.count[name] += 1
        if self.hold:
            await self.hold(name)
        if self.script.get(name):
            return self.script[name].pop(0)
        return Answer(200, new_id("req_"), json.dumps({"name": name, "key": key_id}).encode(), None)


class World:
    """Runners over a database and a store, without a gateway."""

    def __init__(self, database: Database, home: Path) -> None:
        self.database, self.store = database, Store(home / "store")
        self.settings = Settings(home=home, heartbeat_seconds=0.02, lease_seconds=0.4, batch_concurrency=4)

    def batch(self, lines: int, **values: Any) -> str:
        rows = [
            {"custom_id": f"r{k}", "method": "POST", "url": "/predict", "body": {"name": f"n{k}"}} for k in range(lines)
        ]
        file_id = new_id("file-")
        stored = self.store.put(f"files/{file_id}", BytesIO(jsonl(rows)), 1 << 30)
        with self.database.unit_of_work() as session:
            session.add(
                FileRow(id=file_id, filename="f", purpose="batch", bytes=stored.bytes, sha256=stored.sha256, key_id="k")
            )
        request = BatchRequest(input_file_id=file_id, endpoint="/predict", completion_window="24h")
        batch_id = BatchService(self.database, self.settings).create(request, Creation("k", new_id("")), lambda r: r.id)
        if values:
            self.change(batch_id, **values)
        return batch_id

    def change(self, batch_id: str, **values: Any) -> None:
        with self.database.unit_of_work() as session:
            session.execute(update(BatchRow).where(BatchRow.id == batch_id).values(**values))

    def row(self, batch_id: str) -> BatchRow:
        with self.database.unit_of_work() as session:
            return session.scalars(select(BatchRow).where(BatchRow.id == batch_id)).one()

    def runner(self, ask: Asked, waiting: Callable[[], Awaitable[int]] | None = None) -> BatchRunner:
        slots = asyncio.Semaphore(self.settings.batch_concurrency)
        return BatchRunner(BatchContext(self.database, self.store, self.settings, ask, waiting or nobody, slots))

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        with self.store.open(f"files/{file_id}") as stream:
            return [json.loads(row) for row in stream]

    async def ended(self, batch_id: str) -> BatchRow:
        return await self.until(batch_id, lambda row: row.status in ENDED)

    async def until(self, batch_id: str, reached: Callable[[BatchRow], bool]) -> BatchRow:
        async with asyncio.timeout(20):
            while not reached(row := await asyncio.to_thread(self.row, batch_id)):  # noqa: ASYNC110  (a row)
                await asyncio.sleep(0.02)
        return row


async def nobody() -> int:
    return 0


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, tmp_path)


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["custom_id"] for row in rows]


async def test_after_a_crash_in_mid_part_no_line_is_missing_or_twice(world: World) -> None:
    batch_id = world.batch(200)
    asked, reached = Asked(), asyncio.Event()

    async def hold(name: str) -> None:
        if name == "n100":
            reached.set()
            await asyncio.Event().wait()

    asked.hold = hold
    first = world.runner(asked)
    first.start()
    await asyncio.wait_for(reached.wait(), 10)
    await world.until(batch_id, lambda row: row.done == 64)
    await crash(first)
    assert world.row(batch_id).status == "in_progress"
    assert len(world.store.entries(f"batches/{batch_id}/output")) == 2  # one that counts, one that does not
    asked.hold = None
    second = world.runner(asked)
    second.start()
    row = await world.ended(batch_id)
    await second.stop()
    assert (row.status, row.total, row.completed, row.failed, row.done) == ("completed", 200, 200, 0, 200)
    assert row.fence == 2
    assert names(world.lines(row.output_file)) == [f"r{k}" for k in range(200)]
    assert row.error_file is None
    assert max(asked.count[f"n{k}"] for k in range(64)) == 1  # what was written down is not asked again
    assert sum(asked.count.values()) <= 200 + 64
    assert not world.store.path(f"batches/{batch_id}").exists()


async def crash(runner: BatchRunner) -> None:
    """As a process that dies between part and count: the part is stored, no row is written, nothing handed back."""
    runner.context.database = Database("postgresql://nobody@127.0.0.1:1/nothing", patience=0.1)
    while runner._tasks:
        for task in runner._tasks:
            task.cancel()
        await asyncio.wait(runner._tasks, timeout=0.3)


async def test_a_runner_that_stops_keeps_what_it_has_and_hands_over(world: World) -> None:
    batch_id = world.batch(30)
    asked, reached = Asked(), asyncio.Event()

    async def hold(name: str) -> None:
        if name == "n20":
            reached.set()
            await asyncio.Event().wait()

    asked.hold = hold
    first = world.runner(asked)
    first.start()
    await asyncio.wait_for(reached.wait(), 10)
    await asyncio.sleep(0.05)
    await first.stop()
    row = world.row(batch_id)
    assert (row.done, row.completed, row.lease_until) == (20, 20, None)
    asked.hold = None
    second = world.runner(asked)
    second.start()
    row = await world.ended(batch_id)
    await second.stop()
    assert names(world.lines(row.output_file)) == [f"r{k}" for k in range(30)]
    assert max(asked.count[f"n{k}"] for k in range(20)) == 1


async def test_cancel_keeps_what_was_answered(world: World) -> None:
    batch_id = world.batch(10)
    asked, reached = Asked(), asyncio.Event()

    async def hold(name: str) -> None:
        if name == "n3":
            reached.set()
            await asyncio.Event().wait()

    asked.hold = hold
    runner = world.runner(asked)
    runner.start()
    await asyncio.wait_for(reached.wait(), 10)
    await asyncio.sleep(0.05)
    service = BatchService(world.database, world.settings)
    assert [(await asyncio.to_thread(service.cancel, batch_id)).status for _ in range(2)] == ["cancelling"] * 2
    row = await world.ended(batch_id)
    await runner.stop()
    assert (row.status, row.completed, row.failed, row.total) == ("cancelled", 3, 0, 10)
    assert row.cancelling_at and row.cancelled_at
    assert names(world.lines(row.output_file)) == ["r0", "r1", "r2"]
    errors = world.lines(row.error_file)
    assert names(errors) == [f"r{k}" for k in range(3, 10)]
    assert {(e["error"]["code"], e["response"]) for e in errors} == {("batch_cancelled", None)}


async def test_the_window_ends_with_what_was_done(world: World) -> None:
    batch_id = world.batch(70)
    asked, reached = Asked(), asyncio.Event()

    async def hold(name: str) -> None:
        if name == "n66":
            reached.set()
            await asyncio.Event().wait()

    asked.hold = hold
    runner = world.runner(asked)
    runner.start()
    await asyncio.wait_for(reached.wait(), 10)
    await asyncio.to_thread(world.change, batch_id, expires_at=text("now() - interval '1 second'"))
    row = await world.ended(batch_id)
    await runner.stop()
    assert (row.status, row.done, row.total) == ("expired", 66, 70)
    assert names(world.lines(row.output_file)) == [f"r{k}" for k in range(66)]
    assert {e["error"]["code"] for e in world.lines(row.error_file)} == {"batch_expired"}


async def test_one_that_nobody_ran_in_its_window_expires_unasked(world: World) -> None:
    batch_id = world.batch(5, expires_at=text("now() - interval '1 second'"))
    asked = Asked()
    runner = world.runner(asked)
    runner.start()
    row = await world.ended(batch_id)
    await runner.stop()
    assert (row.status, asked.count.total(), row.output_file) == ("expired", 0, None)
    assert len(world.lines(row.error_file)) == 5


async def test_gateways_race_and_one_runs_it(world: World) -> None:
    batches = [world.batch(40) for _ in range(4)]
    asked = Asked()

    async def hold(name: str) -> None:
        await asyncio.sleep(0)

    asked.hold = hold
    runners = [world.runner(asked) for _ in range(3)]
    for runner in runners:
        runner.start()
    rows = [await world.ended(batch_id) for batch_id in batches]
    for runner in runners:
        await runner.stop()
    assert {(row.status, row.fence, row.completed) for row in rows} == {("completed", 1, 40)}
    assert set(asked.count.values()) == {4}  # each line once in each batch


async def test_a_runner_that_slept_through_its_lease_changes_nothing(world: World) -> None:
    """It wakes while its successor is at work, where nothing but the fence tells the two apart."""
    batch_id = world.batch(100)
    asked, wake, go_on = Asked(), asyncio.Event(), asyncio.Event()
    asleep, at_work = asyncio.Event(), asyncio.Event()

    async def hold(name: str) -> None:
        if name == "n90" and not asleep.is_set():
            asleep.set()
            await wake.wait()
        elif name == "n95" and not at_work.is_set():
            at_work.set()
            await go_on.wait()

    asked.hold = hold
    slow = world.runner(asked).context
    slow.settings = world.settings.model_copy(update={"heartbeat_seconds": 3600.0})
    with world.database.unit_of_work() as session:
        row = BatchRepository(session).claim("slow", 0.4)
    assert row
    sleeper = asyncio.create_task(BatchRun(slow, row).run())
    await asyncio.wait_for(asleep.wait(), 10)
    quick = world.runner(asked)
    quick.start()
    await asyncio.wait_for(at_work.wait(), 10)
    wake.set()
    await asyncio.wait_for(sleeper, 10)
    assert asked.count["n99"] == 1  # it went on to the end of its part
    assert world.row(batch_id).done == 64
    go_on.set()
    row = await world.ended(batch_id)
    await quick.stop()
    assert (row.completed, row.fence) == (100, 2)
    assert names(world.lines(row.output_file)) == [f"r{k}" for k in range(100)]


async def test_busy_and_away_are_asked_again_and_bad_lines_are_not(world: World) -> None:
    def refusal(status: int, code: str, retry_after: float | None) -> Answer:
        return Answer(status, "req_x", json.dumps({"error": {"code": code}}).encode(), retry_after)

    asked = Asked()
    asked.script = {
        "n0": [refusal(429, "queue_full", 0.01)] * 4,
        "n1": [refusal(503, "unavailable", 0.01)] * 4,
        "n2": [refusal(400, "invalid_input", None)] * 4,
        "n3": [refusal(503, "internal_error", 0.01)] * 9,
    }
    batch_id = world.batch(5)
    runner = world.runner(asked)
    runner.start()
    row = await world.ended(batch_id)
    await runner.stop()
    assert [asked.count[f"n{k}"] for k in range(5)] == [5, 5, 1, 3, 1]
    assert names(world.lines(row.output_file)) == ["r0", "r1", "r4"]
    assert names(world.lines(row.error_file)) == ["r2", "r3"]
    assert (row.completed, row.failed) == (3, 2)


async def test_nothing_is_asked_while_others_wait(world: World) -> None:
    busy = 7

    async def waiting() -> int:
        return busy

    asked, batch_id = Asked(), world.batch(3)
    runner = world.runner(asked, waiting)
    runner.start()
    await world.until(batch_id, lambda row: row.status == "in_progress")
    await asyncio.sleep(0.2)
    assert asked.count.total() == 0
    busy = 0
    await world.ended(batch_id)
    await runner.stop()
    assert asked.count.total() == 3


async def test_a_revoked_key_answers_the_rest_with_401(keys: KeyService, settings: Settings) -> None:
    key = keys.create("gone", ["predict"])
    key_id = key.split("_")[1]
    keys.revoke(key_id)
    app = create_app(settings)
    answer = await InProcess(app)("/predict", b"{}", key_id)
    assert (answer.status, answer.code, answer.retry_after) == (401, "invalid_api_key", None)
    reader = keys.create("reader", ["read"])
    answer = await InProcess(app)("/predict", b"{}", reader.split("_")[1])
    assert (answer.status, answer.code) == (403, "insufficient_scope")


def test_open_batches_count_as_unfinished_jobs(world: World) -> None:
    world.settings = world.settings.model_copy(update={"max_queued_jobs": 1})
    first = world.batch(1)
    with pytest.raises(QuotaExceeded):
        world.batch(1)
    world.change(first, status="cancelled")
    world.batch(1)


async def test_while_the_database_is_away_answers_are_kept(world: World) -> None:
    batch_id = world.batch(70)
    asked = Asked()
    runner = world.runner(asked)

    async def hold(name: str) -> None:
        if name == "n60":
            runner.context.database = Database("postgresql://nobody@127.0.0.1:1/nothing", patience=0.1)
            asyncio.get_running_loop().call_later(0.3, setattr, runner.context, "database", world.database)

    asked.hold = hold
    runner.start()
    row = await world.ended(batch_id)
    await runner.stop()
    assert (row.status, row.fence, row.completed) == ("completed", 1, 70)
    assert set(asked.count.values()) == {1}


def test_files_and_parts_live_as_long_as_the_batch(world: World, client: TestClient) -> None:
    batch_id = world.batch(3)
    row = world.row(batch_id)
    assert error(client.delete(f"/v1/files/{row.input_file}"), 400)["code"] == "file_in_use"
    old = text("now() - interval '2 days'")
    with world.database.unit_of_work() as session:
        session.execute(update(FileRow).where(FileRow.id == row.input_file).values(expires_at=old))

    def kept() -> tuple[int, dict[str, bool]]:
        with world.database.unit_of_work() as session:
            sweep = SweepRepository(session)
            sweep.mark(7)
            gone = select(func.count()).where(FileRow.id == row.input_file, FileRow.deleted_at.is_not(None))
            return session.scalars(gone).one(), sweep.batches([batch_id])

    assert kept() == (0, {batch_id: False})
    world.change(batch_id, status="cancelled")
    assert kept() == (1, {batch_id: True})
