"""Pops one gateway's list of replies, for ever. Knows nothing of what is in them."""

import asyncio
from collections.abc import Callable
from typing import Any

from app.core.errors import Unavailable
from app.core.logging import get_logger
from app.core.patience import TIMEOUT
from app.core.valkey import Wire

BLOCK = 5.0
"""Seconds that one pop waits; a silent connection is dropped `TIMEOUT` later."""
AT_ONCE = 256
"""Replies in one answer."""

log = get_logger(__name__)


class Replies:
    """Of one event loop."""

    def __init__(
        self, redis_url: str, name: str, resolve: Callable[[bytes], None], reconnected: Callable[[], None]
    ) -> None:
        """`resolve` gets each reply on the list `name`; `reconnected` is called after a connection was lost: some may
        be missing."""
        self._wire, self._name, self._resolve, self._reconnected = Wire(redis_url), name, resolve, reconnected

    def start(self) -> None:
        self._pop()

    async def stop(self) -> None:
        await self._wire.stop()

    def _pop(self) -> None:
        command = ("BLMPOP", BLOCK, 1, self._name, "LEFT", "COUNT", AT_ONCE)
        self._wire.ask(command, self._popped, BLOCK + TIMEOUT)

    def _popped(self, answer: list[Any] | Unavailable | None) -> None:
        if isinstance(answer, Unavailable):
            log.warning("predict_reader_lost_valkey", reason=str(answer))
            self._knock(0.05)
            return
        try:
            for data in answer[1] if answer else ():
                self._resolve(data)
        finally:
            asyncio.get_running_loop().call_soon(self._pop)  # whoever has its answer goes first

    def _knock(self, pause: float) -> None:
        """Until Valkey is back; `pause` in seconds."""

        def heard(answer: Any) -> None:
            if isinstance(answer, Unavailable):
                self._knock(min(1.0, pause * 2))
            else:
                self._reconnected()
                self._pop()

        asyncio.get_running_loop().call_later(pause, self._wire.ask, ("PING",), heard)
