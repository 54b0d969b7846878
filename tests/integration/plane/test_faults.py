"""Workers, gateways and Valkey that die, stop or freeze: what was asked is answered, or its caller hears why not."""

import asyncio
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker

from app.contracts.queues import WORKERS
from app.core.dataplane import DataPlane
from app.core.errors import DeadlineExceeded, Unavailable
from app.core.settings import Settings
from tests.integration.plane.toy_plane import (
    OwnValkey,
    Worker,
    gateway,
    labels_of,
    service,
    serving,
    soon,
    text,
    until_waiting,
)
from workers.inference.consumer import Consumer
from workers.inference.link import Link
from workers.inference.step import InferenceStep


async def test_without_a_worker_callers_hear_so(url: str) -> None:
    async with gateway(url) as plane:
        assert await plane.workers() == []
        with pytest.raises(Unavailable, match="no live inference worker"):
            await plane.predict("abc", ["w1"], {}, soon())


async def test_a_stopping_worker_answers_what_it_took_and_leaves_the_rest(url: str, artifacts: Path) -> None:
    async with gateway(url, queue_tokens=1 << 20) as plane:
        first = Worker(url, artifacts, batch_tokens=64)
        await asyncio.to_thread(first.consumer.start)
        # Loads the version: its imports would get hardly any time beside the loop below.
        await plane.predict("abc", ["w1"], {}, soon())
        calls = asyncio.gather(*(plane.predict("abc", [text(k % 32, 9)] * 20, {}, soon()) for k in range(100)))
        while first.count("rows_total") < 2:  # noqa: ASYNC110
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
