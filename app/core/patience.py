"""How long a command to Valkey may take, and what is said of one that took longer. Knows no command.

Time counts in turns of the event loop. On a busy host the loop itself may stand still for a second, and then the answer
lies in the socket, unread: a clock alone would call Valkey dead whenever this process is slow.
"""

import asyncio
from types import TracebackType

from redis.exceptions import RedisError

from app.core.errors import Unavailable

TIMEOUT = 1.0
"""Seconds for one command; on a local network one takes 0.0002."""
TURN = 0.1
"""Seconds that a turn is counted for."""


class Patience:
    """`async with Patience():` around commands. Raises `Unavailable` when they fail or take too long."""

    def __init__(self, seconds: float = TIMEOUT) -> None:
        self._turns = round(seconds / TURN)
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(TURN, self._turn)

    def _turn(self) -> None:
        self._turns -= 1
        if self._turns > 0:
            self._timer = self._loop.call_later(TURN, self._turn)
        else:
            self._timeout.reschedule(self._loop.time())

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, exc, trace)
        except TimeoutError as late:
            raise away(late) from late
        if isinstance(exc, RedisError | OSError):
            raise away(exc) from exc


def away(exc: Exception) -> Unavailable:
    """What callers hear when a command failed so."""
    return Unavailable(
        f"the inference queue does not answer ({type(exc).__name__}): check that Valkey runs and that "
        "MODELWRIGHT_REDIS_URL is right, then send the request again"
    )
