"""Which workers live, as one gateway sees them: by their heartbeats and, of inference, by their connections.

A worker that is killed loses its connections at once, one that hangs stops beating. Knows no request; who was lost is
told to whoever asked to hear it.
"""

import asyncio
import time
from collections.abc import Callable

from redis.asyncio import Redis

from app.contracts.queues import WORKERS, inference_connection
from app.core.errors import Unavailable
from app.core.patience import Patience

SIGHTING = 2.0
"""Seconds for which a sighting of a live inference worker counts."""


class Sightings:
    def __init__(self, commands: Redis, lost: Callable[[], None]) -> None:
        """`lost` is called when an inference worker has gone since the last look."""
        self._commands, self._lost = commands, lost
        self._probe: asyncio.Task[Unavailable | None] | None = None
        self._seen_alive = float("-inf")
        self._known: set[str] = set()
        """Workers alive at the last look."""
        self._killed: set[str] = set()
        """Those found killed then."""

    def fresh(self) -> bool:
        """Whether an inference worker was seen alive lately."""
        return time.monotonic() - self._seen_alive <= SIGHTING

    async def problem(self) -> Unavailable | None:
        """Look; what is wrong, if anything. All that ask at the same time share one look."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._look())
        return await asyncio.shield(self._probe)

    async def stop(self) -> None:
        """End the look that is under way."""
        while self._probe is not None and not self._probe.done():
            self._probe.cancel()
            await asyncio.wait([self._probe], timeout=0.1)

    async def of(self, role: str) -> tuple[set[str], set[str]]:
        """The live workers of a role, and those killed: of inference, with a fresh heartbeat and no connection.

        Raises `Unavailable` when Valkey does not answer.
        """
        prefix = f"{WORKERS}:{role}:"
        beating: set[str] = set()
        async with Patience():
            async for key in self._commands.scan_iter(match=prefix + "*", count=1000):
                beating.add(key.decode().removeprefix(prefix))
            if role != "inference" or not beating:
                return beating, set()
            connected = {client["name"] for client in await self._commands.client_list()}
        alive = {name for name in beating if inference_connection(name) in connected}
        return alive, beating - alive

    async def _look(self) -> Unavailable | None:
        try:
            alive, killed = await self.of("inference")
        except Unavailable as exc:
            return exc
        if not alive:
            return Unavailable("no live inference worker: start one with `modelwright worker inference`")
        # One that was killed soon after its start was never seen alive, and has taken requests all the same.
        lost = self._known - alive or killed - self._killed
        self._known, self._killed, self._seen_alive = alive, killed, time.monotonic()
        if lost:
            self._lost()
        return None
