"""Patience counts turns of the event loop: a process that stood still has not waited."""

import asyncio
import time

import pytest
from redis.exceptions import ConnectionError as Gone

from app.core.errors import Unavailable
from app.core.patience import Patience


async def test_silence_and_failure_are_told_alike() -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer \\(TimeoutError\\)"):
        async with Patience(0.3):
            await asyncio.Event().wait()
    assert 0.25 < time.monotonic() - started < 5
    with pytest.raises(Unavailable, match="does not answer \\(ConnectionError\\)"):
        async with Patience():
            raise Gone("closed")
    with pytest.raises(ZeroDivisionError):
        async with Patience():
            raise ZeroDivisionError


async def test_a_loop_that_stands_still_has_not_waited() -> None:
    loop, answer = asyncio.get_running_loop(), asyncio.Event()

    async def busy() -> None:
        """Blocks the loop for longer than the patience, then lets the answer in."""
        time.sleep(0.7)  # noqa: ASYNC251
        loop.call_later(0.01, answer.set)

    async with Patience(0.5):
        task = asyncio.create_task(busy())
        await answer.wait()
    await task


async def test_a_cancelled_caller_is_cancelled() -> None:
    async def wait() -> None:
        async with Patience():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
