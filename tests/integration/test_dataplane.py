"""Gateway and inference worker over a real Valkey: every caller gets exactly its own rows, whatever happens."""

import asyncio
import os
import random
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from prometheus_client import CollectorRegistry

from app.contracts.messages import PredictReply
from app.contracts.queues import PREDICT_DOORBELL, PREDICT_WAITING, WORKERS
from app.core.dataplane import CHUNK, DataPlane
from app.core.embedded import EmbeddedValkey
from app.core.errors import DeadlineExceeded, Unavailable
from app.core.metrics import InferenceMetrics
from app.core.process import free_port
from app.core.settings import Settings
from tests import toy_artifact
from workers.inference.consumer import Consumer
from workers.inference.link import Link
from workers.inference.step import InferenceStep

LABELS = {"abc": ("a", "b", "c"), "xy": ("x", "y"), "five": ("1", "2", "3", "4", "5")}


class Worker:
    """An inference worker in this process, with its counters."""

    def __init__(self, url: str, artifacts: Path, **settings: Any) -> None:
        self.located: list[str] = []
        self._artifacts = artifacts
        self._registry = CollectorRegistry()
        self.consumer = Consumer(url, Settings(**settings), self._locate, metrics=InferenceMetrics(self._registry))

    def _locate(self, version_id: str) -> tuple[Path, str]:
        self.located.append(version_id)
        folder = self._artifacts / version_id
        return folder, (folder / "digest").read_text()

    def count(self, name: str, **labels: str) -> float:
        """Over all models."""
        return sum(
            sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
            if sample.name == f"modelwright_inference_{name}" and labels.items() <= sample.labels.items()
        )


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions `abc`, `xy`, `five`, the tagger `ner` and `corrupt`, whose graph was changed after publishing."""
    root = tmp_path_factory.mktemp("artifacts")
    for name, labels in LABELS.items():
        (digest := root / name / "digest").parent.mkdir()
        digest.write_text(toy_artifact.build(root / name, labels=labels))
    tagger = toy_artifact.build(root / "ner", task="token-classification", labels=toy_artifact.IOB2)
    (root / "ner" / "digest").write_text(tagger)
    (root / "corrupt").mkdir()
    (root / "corrupt" / "digest").write_text(toy_artifact.build(root / "corrupt"))
    with (root / "corrupt" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    return root


@pytest.fixture
def url(redis_url: str) -> str:
    """The shared Valkey without what an earlier test left."""
    with redis.Redis.from_url(redis_url) as client:
        for key in [*client.scan_iter("modelwright:predict:*"), *client.scan_iter(f"{WORKERS}:inference:*")]:
            client.delete(key)
    return redis_url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


class OwnValkey:
    """A Valkey that a test may kill, freeze and start again on the same port."""

    def __init__(self, home: Path) -> None:
        self._home, self._port, self._password = home, free_port(), secrets.token_urlsafe(12)
        self.start()

    def start(self) -> None:
        self.server = EmbeddedValkey.start(self._home, self._port, self._password)
        self.url = self.server.url

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.server.process.pid, number)

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnValkey]:
    valkey = OwnValkey(tmp_path)
    yield valkey
    valkey.signal(signal.SIGCONT)
    valkey.server.stop()


@asynccontextmanager
async def gateway(url: str, **settings: Any) -> AsyncIterator[DataPlane]:
    plane = DataPlane(url, Settings(**settings))
    await plane.start()
    try:
        yield plane
    finally:
        await plane.stop()


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[Worker]:
    await asyncio.to_thread(worker.consumer.start)
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.consumer.stop)


@asynccontextmanager
async def service(url: str, artifacts: Path, **settings: Any) -> AsyncIterator[tuple[DataPlane, Worker]]:
    async with gateway(url, **settings) as plane, serving(Worker(url, artifacts, **settings)) as worker:
        yield plane, worker


def soon(seconds: float = 60.0) -> float:
    return time.time() + seconds


def text(word: int, times: int) -> str:
    return " ".join([f"w{word}"] * times)


def labels_of(reply: PredictReply) -> list[str]:
    assert reply.error is None, reply.message
    return [output["label"] for output in reply.outputs or ()]


async def until_waiting(plane: DataPlane, tokens: int) -> None:
    """Wait for a state of Valkey, which no event of this loop tells of."""
    async with asyncio.timeout(30):
        while await plane.waiting() != tokens:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_hundreds_of_mixed_callers_get_exactly_their_own_rows(
    url: str, artifacts: Path, client: redis.Redis
) -> None:
    draw = random.Random(11)
    async with service(url, artifacts, session_memory_bytes=40 << 20, queue_tokens=1 << 20) as (plane, worker):

        async def caller() -> int:
            version, size = draw.choice([*LABELS, "ner"]), draw.choice([1, 1, 1, 2, 7, 40, 150])
            words = [draw.randrange(toy_artifact.WORDS) for _ in range(size)]
            if version == "ner":
                tokens = [f"w{word}" for word in words]
                reply = await plane.predict("ner", [{"tokens": tokens}], {}, soon())
                assert reply.outputs
                expected = [toy_artifact.IOB2[word % 4] for word in words]
                assert [t[2:] for t in reply.outputs[0]["tags"]] == [t[2:] for t in expected]
            else:
                texts = [text(word, draw.randint(1, 14)) for word in words]
                expected = [LABELS[version][word % len(LABELS[version])] for word in words]
                reply = await plane.predict(version, texts, {}, soon())
                assert labels_of(reply) == expected
            return reply.batch_size

        sizes = await asyncio.gather(*(caller() for _ in range(400)))
        assert max(sizes) > 8  # they did share batches
        assert worker.count("requests_total", outcome="answered") >= 400
        padding, real = (worker.count("tokens_total", kind=kind) for kind in ("padding", "real"))
        assert padding / (padding + real) < 0.1
        assert await plane.waiting() == 0
    assert not client.exists(PREDICT_DOORBELL, PREDICT_WAITING)


async def test_two_gateways_and_two_workers_share_one_queue(url: str, artifacts: Path) -> None:
    async with (
        service(url, artifacts) as (one, _),
        service(url, artifacts) as (two, _),
    ):
        assert len(await one.workers()) == 2
        calls = [plane.predict("abc", [text(k % 32, 2)], {}, soon()) for k in range(60) for plane in (one, two)]
        replies = await asyncio.gather(*calls)
        assert [labels_of(reply) for reply in replies] == [["abc"[k % 32 % 3]] for k in range(60) for _ in range(2)]


async def test_a_large_call_is_split_and_merged_in_order(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, worker):
        reply = await plane.predict("abc", [text(k % 32, 1 + k % 5) for k in range(1024)], {}, soon())
        assert labels_of(reply) == ["abc"[k % 32 % 3] for k in range(1024)]
        assert reply.tokens == sum(3 + k % 5 for k in range(1024))
        assert worker.count("requests_total", outcome="answered") == 1024 / CHUNK
        assert (await plane.predict("abc", [], {}, soon())).outputs == []


async def test_a_poison_input_fails_alone_and_is_named(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, _):
        calls = [plane.predict("abc", ["w1 poison" if k == 5 else "w1"], {}, soon()) for k in range(12)]
        replies = await asyncio.gather(*calls)
        assert [reply.error for reply in replies] == [None] * 5 + ["internal_error"] + [None] * 6
        unreadable = await plane.predict("abc", ["w1"] * 70 + [7], {}, soon())
        assert (unreadable.error, unreadable.param) == ("invalid_input", "inputs[70]")


async def test_a_version_that_cannot_be_loaded_fails_its_own_requests(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, worker):
        names = ["corrupt", "abc", "absent", "corrupt", "abc"]
        replies = await asyncio.gather(*(plane.predict(name, ["w1"], {}, soon()) for name in names))
        assert [reply.error for reply in replies] == [
            "model_load_failed", None, "model_load_failed", "model_load_failed", None,
        ]  # fmt: skip
        assert "model.onnx" in replies[0].message
        assert "hashes to" in replies[0].message
        assert worker.located.count("corrupt") == 1


async def test_what_is_past_its_deadline_is_never_computed(url: str, artifacts: Path) -> None:
    with closing(Link(url, "ghost")) as ghost:
        ghost.beat()  # a worker that lives and takes nothing
        async with gateway(url) as plane:
            late = [plane.predict("abc", ["w1", "w2"], {}, soon(0.2)) for _ in range(3)]
            results = await asyncio.gather(*late, return_exceptions=True)
            assert [type(result) for result in results] == [DeadlineExceeded] * 3
            with pytest.raises(DeadlineExceeded, match="no answer to 1 inputs within the deadline"):
                await plane.predict("abc", ["w1"], {}, time.time())
            assert await plane.waiting() == 12
            async with serving(Worker(url, artifacts)) as worker:
                await until_waiting(plane, 0)
                reply = await plane.predict("abc", ["w1"], {}, soon())
                assert labels_of(reply) == ["b"]
                assert worker.count("requests_total", outcome="expired") == 3
                assert worker.count("rows_total") == 1


async def test_without_a_worker_callers_hear_so(url: str) -> None:
    async with gateway(url) as plane:
        assert await plane.workers() == []
        with pytest.raises(Unavailable, match="no live inference worker"):
            await plane.predict("abc", ["w1"], {}, soon())


async def test_a_stopping_worker_answers_what_it_took_and_leaves_the_rest(url: str, artifacts: Path) -> None:
    async with gateway(url, queue_tokens=1 << 20) as plane:
        first = Worker(url, artifacts, batch_tokens=64)
        await asyncio.to_thread(first.consumer.start)
        calls = asyncio.gather(*(plane.predict("abc", [text(k % 32, 9)] * 20, {}, soon()) for k in range(100)))
        while not first.count("rows_total"):  # noqa: ASYNC110
            await asyncio.sleep(0)
        async with serving(Worker(url, artifacts)) as second:
            await asyncio.to_thread(first.consumer.stop)
            replies = await calls
            assert await plane.workers() == [second.consumer.name]
        assert [labels_of(reply) for reply in replies] == [["abc"[k % 32 % 3]] * 20 for k in range(100)]
        assert second.count("rows_total") > 0
        # Every row at least once; more only where the gateway sent again what the first worker might have held.
        assert first.count("rows_total") + second.count("rows_total") >= 2000


async def test_what_a_dead_worker_took_is_sent_again(url: str, artifacts: Path) -> None:
    async with gateway(url) as plane, serving(Worker(url, artifacts)) as worker:
        with closing(Link(url, "ghost")) as ghost:
            ghost.beat()
            assert labels_of(await plane.predict("abc", ["w1"], {}, soon())) == ["b"]  # both workers are known
            await asyncio.to_thread(worker.consumer.stop)
            ghost.beat()
            call = asyncio.create_task(plane.predict("abc", ["w2"], {}, soon()))
            await until_waiting(plane, 2)
            taken = ghost.take(64)
            assert [request.inputs for request in taken] == [["w2"]]
            ghost.sign_off()
        async with serving(Worker(url, artifacts)):
            assert labels_of(await call) == ["c"]


async def test_what_a_killed_worker_took_is_sent_again_though_its_heartbeat_is_fresh(url: str, artifacts: Path) -> None:
    async with gateway(url) as plane:
        with closing(Link(url, "ghost")) as ghost:
            ghost.beat()
            call = asyncio.create_task(plane.predict("abc", ["w2"], {}, soon()))
            await until_waiting(plane, 2)
            assert [request.inputs for request in ghost.take(64)] == [["w2"]]
        async with serving(Worker(url, artifacts)) as worker:
            assert labels_of(await call) == ["c"]
            assert await plane.workers() == [worker.consumer.name]


async def test_what_a_worker_took_that_was_killed_before_anybody_saw_it_is_sent_again(
    url: str, artifacts: Path
) -> None:
    async with gateway(url) as plane, serving(Worker(url, artifacts)) as worker:
        assert labels_of(await plane.predict("abc", ["w1"], {}, soon())) == ["b"]
        # Takes in place of the worker, which is stopped, and is gone before the gateway looks again.
        await asyncio.to_thread(worker.consumer.stop)
        plane._sightings._seen_alive = time.monotonic()
        with closing(Link(url, "ghost")) as ghost:
            call = asyncio.create_task(plane.predict("abc", ["w2"], {}, soon(10)))
            await until_waiting(plane, 2)
            ghost.beat()
            assert [request.inputs for request in ghost.take(64)] == [["w2"]]
        plane._sightings._known = set()
        async with serving(Worker(url, artifacts)):
            assert labels_of(await call) == ["c"]


async def test_a_call_that_cannot_be_sent_leaves_nothing_behind(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, _):
        with pytest.raises(UnicodeEncodeError):
            await plane.predict("abc", ["\ud800"], {}, soon())
        plane._resend("worker_lost")
        assert labels_of(await plane.predict("abc", ["w1"], {}, soon())) == ["b"]


async def test_reply_lists_expire_when_their_gateway_died(url: str, artifacts: Path, client: redis.Redis) -> None:
    plane = DataPlane(url, Settings())
    await plane.start()
    await plane._replies.stop()  # nobody reads its replies
    async with serving(Worker(url, artifacts)):
        with pytest.raises(DeadlineExceeded):
            await plane.predict("abc", ["w1"], {}, soon(1.0))
        (reply_list,) = client.scan_iter("modelwright:predict:reply:*")
        assert 0 < client.ttl(reply_list) <= 120
    await plane.stop()


async def test_calls_that_wait_when_the_gateway_stops_fail(url: str) -> None:
    with closing(Link(url, "ghost")) as ghost:
        ghost.beat()
        plane = DataPlane(url, Settings())
        await plane.start()
        call = asyncio.create_task(plane.predict("abc", ["w1"], {}, soon()))
        await until_waiting(plane, 2)
        await plane.stop()
        with pytest.raises(Unavailable, match="the gateway stops"):
            await call


async def test_a_restarted_valkey_is_found_again(own: OwnValkey, artifacts: Path) -> None:
    async with service(own.url, artifacts) as (plane, _):
        assert labels_of(await plane.predict("abc", ["w1"], {}, soon())) == ["b"]
        for _ in range(2):
            await asyncio.to_thread(own.kill)
            with pytest.raises(Unavailable):
                await plane.workers()
            await asyncio.to_thread(own.start)
            async with asyncio.timeout(20):
                while True:
                    try:
                        reply = await plane.predict("abc", ["w2"], {}, soon())
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)
            assert labels_of(reply) == ["c"]


async def test_a_queue_lost_with_valkey_is_sent_again(own: OwnValkey, artifacts: Path, tmp_path: Path) -> None:
    with closing(Link(own.url, "ghost")) as ghost:
        ghost.beat()
        async with gateway(own.url) as plane:
            call = asyncio.create_task(plane.predict("abc", ["w2"], {}, soon()))
            await until_waiting(plane, 2)

            def lose_everything() -> None:
                own.kill()
                shutil.rmtree(tmp_path / "valkey")
                own.start()
                ghost.beat()

            await asyncio.to_thread(lose_everything)
            async with serving(Worker(own.url, artifacts)):
                assert labels_of(await call) == ["c"]


async def test_a_frozen_valkey_is_an_error_within_seconds(own: OwnValkey, artifacts: Path) -> None:
    with closing(Link(own.url, "ghost")) as ghost:
        ghost.beat()
        async with gateway(own.url) as plane:
            waiting = asyncio.create_task(plane.predict("abc", ["w1"], {}, soon()))
            await until_waiting(plane, 2)
            own.signal(signal.SIGSTOP)
            started = time.monotonic()
            calls = [plane.predict("abc", ["w1"], {}, soon()) for _ in range(100)]
            results = await asyncio.gather(waiting, plane.workers(), plane.waiting(), *calls, return_exceptions=True)
            assert {type(result) for result in results} == {Unavailable}
            assert time.monotonic() - started < 2.5
            own.signal(signal.SIGCONT)
            async with serving(Worker(own.url, artifacts)):
                assert labels_of(await plane.predict("abc", ["w2"], {}, soon())) == ["c"]


def test_the_celery_worker_starts_and_stops_the_consumer(url: str, artifacts: Path, client: redis.Redis) -> None:
    worker = Worker(url, artifacts)

    class Step(InferenceStep):
        @staticmethod
        def build() -> Consumer:
            return worker.consumer

    app = Celery(broker="memory://", set_as_current=False)
    app.steps["worker"].add(Step)
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        deadline = time.monotonic() + 10
        while not client.exists(f"{WORKERS}:inference:{worker.consumer.name}"):
            assert time.monotonic() < deadline
    assert not client.exists(f"{WORKERS}:inference:{worker.consumer.name}")
