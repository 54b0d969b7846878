"""The queue between gateways and workers: bounded, in turns, handed over where somebody is idle."""

import asyncio
import time
from contextlib import closing
from pathlib import Path

import pytest
import redis

from app.core.errors import DeadlineExceeded, Overloaded
from tests.integration.plane.toy_plane import Worker, gateway, labels_of, service, serving, soon, text, until_waiting
from workers.inference.link import Link


async def test_over_the_limit_is_refused_at_once_and_room_is_found_again(url: str, artifacts: Path) -> None:
    with closing(Link(url, "ghost")) as ghost:
        ghost.beat()
        async with gateway(url, queue_tokens=20) as plane:
            held = asyncio.gather(*(plane.predict("abc", ["w1"] * 5, {}, soon()) for _ in range(2)))
            await until_waiting(plane, 20)  # "w1" counts as 2
            started = time.monotonic()
            for _ in range(2):  # the second time without asking Valkey
                with pytest.raises(Overloaded, match="about 20 tokens wait; the limit is 20"):
                    await plane.predict("xy", ["w1"], {}, soon())
            assert time.monotonic() - started < 0.5
            async with serving(Worker(url, artifacts)):
                assert [labels_of(reply) for reply in await held] == [["b"] * 5] * 2
                assert labels_of(await plane.predict("xy", ["w1"], {}, soon())) == ["y"]


async def test_a_caller_that_fills_the_queue_shuts_no_other_out(url: str, artifacts: Path) -> None:
    with closing(Link(url, "ghost")) as ghost:
        ghost.beat()
        async with gateway(url, queue_tokens=20) as plane:
            flood = [plane.predict("abc", ["w1"] * 5, {}, soon(), caller="busy") for _ in range(2)]
            held = asyncio.gather(*flood)
            await until_waiting(plane, 20)
            with pytest.raises(Overloaded):
                await plane.predict("abc", ["w1"], {}, soon(), caller="busy")
            quiet = asyncio.create_task(plane.predict("abc", ["w2"], {}, soon(), caller="quiet"))
            await until_waiting(plane, 22)
            async with serving(Worker(url, artifacts)):
                assert labels_of(await quiet) == ["c"]
                await held


async def test_callers_take_turns_and_an_urgent_one_goes_first(url: str) -> None:
    with closing(Link(url, "ghost")) as ghost:
        ghost.beat()
        async with gateway(url) as plane:
            order = ["busy"] * 3 + ["quiet", "late"]
            calls = []
            for caller in order:
                calls.append(plane.predict("abc", ["w1"], {}, soon(1.0), caller=caller, urgent=caller == "late"))
            waiting = [asyncio.create_task(call) for call in calls]
            await until_waiting(plane, 10)
            taken = []
            while requests := ghost.take(1):
                taken.append(requests[0].caller)
            assert taken == ["late", "busy", "quiet", "busy", "busy"]
            assert all(isinstance(r, DeadlineExceeded) for r in await asyncio.gather(*waiting, return_exceptions=True))
            assert await plane.waiting() == 0


async def test_no_batch_has_more_rows_than_somebody_said_of_its_version(url: str, artifacts: Path) -> None:
    with closing(Link(url, "ghost")) as ghost:
        ghost.beat()
        async with gateway(url) as plane:
            calls = [plane.predict(version, ["w1", "w2"], {}, soon()) for version in ("abc", "five") for _ in range(4)]
            held = asyncio.gather(*calls)
            await until_waiting(plane, 32)
            worker = Worker(url, artifacts)
            worker.consumer._sessions.max_batch_size = {"abc": 3}
            async with serving(worker):
                sizes = [reply.batch_size for reply in await held]
    assert max(sizes[:4]) <= 3 and sizes[4:] == [8] * 4


async def test_256_single_inputs_at_once_are_admitted_by_default(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, _):
        replies = await asyncio.gather(*(plane.predict("abc", [text(k % 32, 3)], {}, soon()) for k in range(256)))
        assert [labels_of(reply) for reply in replies] == [["abc"[k % 32 % 3]] for k in range(256)]


async def test_an_idle_worker_is_handed_a_lone_request_and_the_others_are_woken(url: str, client: redis.Redis) -> None:
    async with gateway(url) as plane:
        with closing(Link(url, "one")) as one, closing(Link(url, "two")) as two:
            one.beat()
            two.beat()
            waits = [asyncio.create_task(asyncio.to_thread(link.wait)) for link in (one, two)]
            while client.info("clients")["blocked_clients"] <= len(waits):  # noqa: ASYNC110  (the gateway reads, too)
                await asyncio.sleep(0)
            calls = [asyncio.create_task(plane.predict("abc", ["w0"], {}, soon(3.0)))]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            calls += [asyncio.create_task(plane.predict("abc", [f"w{k}"], {}, soon(3.0))) for k in (1, 2)]
            handed = await asyncio.gather(*waits)
            assert sorted(len(requests or ()) for requests in handed) == [0, 1], "one has it in hand, one is to look"
            assert await plane.waiting() == 4
            assert len(one.take(1)) == 1
            assert two.wait() == [], "there is more"
            assert len(two.take(1)) == 1
            assert (await plane.waiting(), one.take(1)) == (0, [])
            assert await asyncio.to_thread(one.wait) is None
            for call in calls:
                call.cancel()


async def test_a_lone_request_that_nobody_was_idle_for_comes_before_the_lines(url: str) -> None:
    with closing(Link(url, "busy")) as busy:
        busy.beat()
        async with gateway(url) as first, gateway(url) as second:
            lined = asyncio.gather(*(first.predict("abc", ["w1"], {}, soon(1.0), caller="many") for _ in range(3)))
            await until_waiting(first, 6)
            lone = asyncio.create_task(second.predict("abc", ["w2"], {}, soon(1.0), caller="one"))
            await until_waiting(first, 8)
            assert [request.caller for request in busy.take(1)] == ["one", "many"]
            for call in (lined, lone):
                call.cancel()
