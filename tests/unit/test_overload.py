"""The overload benchmark's own parts: its generator counts every request once, and its report can say no."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from benchmarks.load import Result
from benchmarks.memory import MIB, resident
from benchmarks.overload_report import Measured, report
from benchmarks.storm import Answer, Storm, poisson, storm

REPLIES = {b"/yes": b"200 OK", b"/no": b"429 Too Many Requests"}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            if path not in REPLIES:
                break
            writer.write(b"HTTP/1.1 " + REPLIES[path] + b"\r\nContent-Length: 4\r\n\r\n")
            await writer.drain()
            writer.write(b"body")
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()


@pytest.fixture
def port() -> Iterator[int]:
    """A server that accepts, refuses or hangs up, by path; head and body come apart."""
    started, found = threading.Event(), []
    loop = asyncio.new_event_loop()

    async def run() -> None:
        server = await asyncio.start_server(_serve, "127.0.0.1", 0)
        found.append((server.sockets[0].getsockname()[1], stop := asyncio.Event()))
        started.set()
        async with server:
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert started.wait(5)
    yield found[0][0]
    loop.call_soon_threadsafe(found[0][1].set)
    thread.join()
    loop.close()


def test_every_request_is_answered_once_in_its_own_way(port: int) -> None:
    moments = poisson(600, 0.5)
    requests = [b"GET " + path + b" HTTP/1.1\r\n\r\n" for path in (b"/yes", b"/no", b"/gone")]
    found = storm("127.0.0.1", port, requests, moments)
    counts = [sum(a.status == status for a in found.answers) for status in (200, 429, 0)]
    assert counts == [len(moments[n::3]) for n in range(3)]
    assert len(found.late) == len(moments)
    assert min(found.late) > -0.002  # the loop's clock counts milliseconds


def _measured(answers: list[Answer], memory: int = 0) -> Measured:
    alone = Result(1.0, {200: [0.010] * 100})
    used = {"gateway": [100 * MIB, 100 * MIB + memory]}
    return Measured("toys", 10, 0.9, 2.0, 100.0, 10.0, alone, Storm(answers, [0.0]), used, budget=0.5)


def test_a_service_that_holds_keeps_every_promise() -> None:
    answers = [Answer(n / 10, 0.02, 200) for n in range(19)] + [Answer(n / 100, 0.001, 429) for n in range(180)]
    found = _measured([*answers, *(Answer(2 + n / 10, 0.011, 200) for n in range(20))])
    assert found.goodput == pytest.approx(9.5)
    assert found.normal_after == 0
    assert "NO" not in report([found], "test", None)


def test_each_broken_promise_is_named() -> None:
    storming = [Answer(0.1, 1.0, 200), Answer(0.1, 0.5, 429)]
    page = report([_measured([*storming, *(Answer(2 + n, 0.5, 200) for n in range(9))], 200 * MIB)], "test", None)
    broken = [line.split("|")[1].strip() for line in page.splitlines() if "**NO**" in line]
    assert broken == [
        "goodput, of the peak",
        "p99 of accepted, ms",
        "p99 of refusals, ms",
        "longest refusal, ms",
        "gateway: MiB more at most",
        "normal again after, s",
    ]


def test_normal_is_three_good_answers_in_a_row() -> None:
    slow, good = 0.5, 0.015
    after = [Answer(2 + n, seconds, 200) for n, seconds in enumerate((slow, good, good, slow, good, good, good))]
    assert _measured(after).normal_after == 4


def test_a_process_that_ended_uses_no_memory() -> None:
    assert resident([2**22 + 1]) == 0  # above the largest process id
