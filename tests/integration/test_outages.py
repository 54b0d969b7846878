"""Postgres or Valkey frozen or gone under the gateway: quick, honest refusals, and back to work by itself."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import text

from app.auth.keys import KeyService
from app.contracts.queues import WORKERS, inference_connection
from app.core import replies
from app.core.dataplane import DataPlane
from app.core.embedded import EmbeddedPostgres, EmbeddedValkey
from app.core.errors import Unavailable
from app.core.queue import MAX_WAITING, Bell
from app.core.settings import Settings
from app.main import create_app
from app.registry.driver import BoundedConnection, NoAnswer, deadline
from app.registry.migrate import upgrade
from app.registry.session import Database
from tests.integration.helpers import INTENTS, jsonl

BOUND = 2.5
"""Seconds within which every request is answered, whatever the servers do."""
READS = ("/v1/models", "/v1/files", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/ftjob-x", "/health/ready")


def _family(pid: int) -> list[int]:
    """The process, then its children: Postgres answers from those."""
    stats = {int(p.parent.name): p.read_text() for p in Path("/proc").glob("[0-9]*/stat") if p.exists()}
    return [pid, *(child for child, stat in stats.items() if int(stat.rpartition(")")[2].split()[1]) == pid)]


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Nothing answers and every connection stays open."""
    os.kill(pid, signal.SIGSTOP)
    family = _family(pid)
    try:
        _signal(family, signal.SIGSTOP)
        yield
    finally:
        _signal(family, signal.SIGCONT)


def _signal(pids: list[int], sig: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # a connection's process may have been about to end
            os.kill(pid, sig)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres.start(tmp_path_factory.mktemp("own-postgres"))
    upgrade(server.url)
    yield server
    server.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey.start(tmp_path)
    yield server
    server.stop()


@asynccontextmanager
async def gateway(home: Path, database_url: str, redis_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with an admin key; a hundred requests at once run as in a server, on one loop and forty threads."""
    database = Database(database_url)
    key = KeyService(database).create("outages", ["admin"])
    database.dispose()
    app = create_app(Settings(home=home, database_url=database_url, redis_url=redis_url))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://gateway",
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        ) as client,
    ):
        yield client


async def _timed(call: Any) -> tuple[float, httpx2.Response]:
    started = time.monotonic()
    answer = await call
    return time.monotonic() - started, answer


async def _file(client: httpx2.AsyncClient) -> str:
    answer = await client.post("/v1/files", files={"file": ("a.jsonl", jsonl(INTENTS))}, data={"purpose": "fine-tune"})
    file_id: str = answer.json()["id"]
    return file_id


def _job(client: httpx2.AsyncClient, file_id: str) -> Any:
    return client.post("/v1/fine_tuning/jobs", json={"model": "all-MiniLM-L6-v2", "training_file": file_id})


async def test_frozen_postgres(postgres: EmbeddedPostgres, redis_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, postgres.url, redis_url) as client:
        file_id = await _file(client)
        # Forty at once before: the pool is full of connections that look healthy.
        await asyncio.gather(*(client.get("/v1/models") for _ in range(40)))
        with frozen(postgres.server.get_pid()):
            for _ in range(2):  # with threads that all wait, then with a server known to be silent
                calls = [client.get(READS[i % len(READS)]) for i in range(80)]
                calls += [_job(client, file_id) for _ in range(10)]
                calls += [client.post("/predict", json={"model": "m", "inputs": "x"}) for _ in range(10)]
                answers = await asyncio.gather(*map(_timed, calls))
                assert {answer.status_code for _, answer in answers} == {503}
                assert all(answer.headers.get("retry-after") for _, answer in answers)
                assert max(seconds for seconds, _ in answers) < BOUND
        await _answers_within(5, client)
        assert (await _job(client, file_id)).status_code == 200


async def _answers_within(seconds: float, client: httpx2.AsyncClient) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (await client.get("/v1/models")).status_code == 200:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"still refused after {seconds} s")


async def test_postgres_away(redis_url: str, tmp_path: Path) -> None:
    server = EmbeddedPostgres.start(tmp_path)
    upgrade(server.url)
    async with gateway(tmp_path, server.url, redis_url) as client:
        await asyncio.gather(*(client.get("/v1/models") for _ in range(40)))
        server.stop()
        until = time.monotonic() + 3
        while time.monotonic() < until:  # the caller's key is known for another second; the rows are not
            answers = await asyncio.gather(*(_timed(client.get(path)) for path in READS))
            assert {a.status_code for _, a in answers} == {503}, [a.text for _, a in answers]
            assert all(a.headers.get("retry-after") for _, a in answers)
            assert max(seconds for seconds, _ in answers) < 1
            await asyncio.sleep(0.2)
        server = EmbeddedPostgres.start(tmp_path)
        try:
            await _answers_within(5, client)
        finally:
            server.stop()


def test_a_connection_is_made_or_refused_in_time(postgres: EmbeddedPostgres) -> None:
    url = postgres.url
    with frozen(postgres.server.get_pid()), deadline(0.5):
        started = time.monotonic()
        with pytest.raises(NoAnswer):
            BoundedConnection.connect(url)
        assert 0.4 < time.monotonic() - started < 1
    with BoundedConnection.connect(url) as connection, deadline(0.5):  # the server lives, the answer is late
        with pytest.raises(NoAnswer):
            connection.execute("SELECT pg_sleep(5)")
        assert connection.closed


def test_a_slow_statement_is_no_silent_server(postgres: EmbeddedPostgres) -> None:
    database = Database(postgres.url, patience=0.8)
    with pytest.raises(Unavailable), database.unit_of_work() as session:
        session.execute(text("SELECT pg_sleep(5)"))
    with database.unit_of_work() as session:  # the next caller is not refused
        assert session.scalar(text("SELECT 1")) == 1
    database.dispose()


def test_a_block_that_takes_its_time_is_no_silent_server(postgres: EmbeddedPostgres) -> None:
    database = Database(postgres.url, patience=0.1)
    with database.unit_of_work() as session:
        session.execute(text("SELECT 1"))
        time.sleep(0.2)
        assert session.scalar(text("SELECT 2 FROM pg_sleep(0.03)")) == 2
    database.dispose()


def test_a_commit_without_an_answer_is_no_success(postgres: EmbeddedPostgres) -> None:
    database = Database(postgres.url, patience=0.5)
    with ExitStack() as stack, pytest.raises(Unavailable), database.unit_of_work() as session:
        session.execute(text("SELECT 1"))
        stack.enter_context(frozen(postgres.server.get_pid()))
    with pytest.raises(Unavailable, match="a moment ago"), database.unit_of_work():
        pass
    database.dispose()


def test_a_frozen_client_loses_its_locks(postgres: EmbeddedPostgres) -> None:
    database = Database(postgres.url)
    with pytest.raises(Unavailable), database.unit_of_work() as session:
        assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "10s"
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
        time.sleep(0.2)
        session.execute(text("SELECT 1"))
    database.dispose()


async def test_frozen_valkey(valkey: EmbeddedValkey, database_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path, database_url, valkey.url) as client:
        file_id = await _file(client)
        assert (await _job(client, file_id)).status_code == 200
        with frozen(valkey.process.pid):
            slow = [client.get(path) for path in ("/metrics", "/health/ready") * 50]
            answers = await asyncio.gather(*map(_timed, slow))
            assert {answer.status_code for _, answer in answers} == {503}
            assert max(seconds for seconds, _ in answers) < BOUND
            jobs = [await _timed(_job(client, file_id)) for _ in range(MAX_WAITING + 20)]
            assert {answer.status_code for _, answer in jobs} == {200}
            assert sorted(seconds for seconds, _ in jobs)[int(len(jobs) * 0.99) - 1] < 0.3
        valkey.process.kill()
        jobs = [await _timed(_job(client, file_id)) for _ in range(20)]
        assert {answer.status_code for _, answer in jobs} == {200}
        assert max(seconds for seconds, _ in jobs) < 0.3


@pytest.mark.parametrize("seen", [0.0, 0.5])
async def test_a_prediction_under_way_when_valkey_freezes(valkey: EmbeddedValkey, seen: float) -> None:
    """Pushed already, and nobody will answer: refused well before its deadline of 30 s."""
    known = redis.Redis.from_url(valkey.url, client_name=inference_connection("one"))
    known.set(f"{WORKERS}:inference:one", "1")
    plane = DataPlane(valkey.url, Settings())
    await plane.start()
    try:
        call = asyncio.create_task(plane.predict("v", ["x"], {}, time.time() + 30))
        await asyncio.sleep(0.1 + seen)
        assert await plane.waiting() == 2  # pushed
        plane._sightings._seen_alive = time.monotonic()  # another call's look
        with frozen(valkey.process.pid):
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await call
            assert time.monotonic() - started < BOUND
    finally:
        await plane.stop()
        known.close()


async def test_the_reader_gives_up_a_connection_on_which_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that vanished: connections open and stay silent, also the one on which the reader looks whether it is
    back."""
    monkeypatch.setattr(replies, "BLOCK", 0.05)
    monkeypatch.setattr(replies, "TIMEOUT", 0.1)
    opened: list[asyncio.StreamWriter] = []
    enough = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        if len(opened) == 4:
            enough.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        plane = DataPlane(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", Settings())
        await plane.start()
        try:
            async with asyncio.timeout(5):
                await enough.wait()
        finally:
            await plane.stop()
            for writer in opened:
                writer.close()


def test_rings_that_wait_are_few(valkey: EmbeddedValkey) -> None:
    bell = Bell(valkey.url)
    with frozen(valkey.process.pid):
        started = time.monotonic()
        for number in range(MAX_WAITING * 10):
            bell.ring(f"ftjob-{number}")
        assert time.monotonic() - started < 1
        assert bell._pool._work_queue.qsize() <= MAX_WAITING
        bell.close()
