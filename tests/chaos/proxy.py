"""A TCP proxy that can break: what lies behind it goes away, hangs or gets slow for those in front, and comes back.

One thread with its own event loop for all proxies of a run. Knows no protocol.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from app.core.process import free_port

Mode = Literal["pass", "refuse", "freeze", "delay"]
_CHUNK = 1 << 16


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


class Proxy:
    """127.0.0.1:`port` -> `upstream`, a TCP port of loopback or the path of a Unix socket."""

    def __init__(self, loop: Loop, upstream: int | Path, delay: float = 0.2) -> None:
        self._loop, self._upstream, self._delay = loop, upstream, delay
        self.port = free_port()
        self._mode: Mode = "pass"
        self._open = asyncio.Event()
        self._ends: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        loop.run(self._listen())

    def cut(self) -> None:
        """Close every connection; new ones pass."""
        self._loop.run(self._cut())

    def set(self, mode: Mode) -> None:
        """`refuse`: nobody listens, every connection is closed. `freeze`: accepted, and nothing is forwarded.
        `delay`: each chunk comes late."""
        self._loop.run(self._set(mode))

    def close(self) -> None:
        self._loop.run(self._set("refuse"))

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "refuse":
            if self._server:
                self._server.close()
                self._server = None
            await self._cut()
        elif self._server is None:
            await self._listen()
        if mode == "freeze":
            self._open.clear()
        else:
            self._open.set()

    async def _listen(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=256)

    async def _cut(self) -> None:
        for end in list(self._ends):
            end.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = None
        self._ends.add(writer)
        try:
            await self._open.wait()
            back, far = await self._connect()
            self._ends.add(far)
            await asyncio.gather(self._pump(reader, far), self._pump(back, writer))
        except OSError:
            pass  # nobody behind: the caller sees its connection closed
        finally:
            for end in (writer, far):
                if end is not None:
                    self._ends.discard(end)
                    end.transport.abort()

    def _connect(self) -> Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        if isinstance(self._upstream, Path):
            return asyncio.open_unix_connection(str(self._upstream))
        return asyncio.open_connection("127.0.0.1", self._upstream)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._open.wait()
                if self._mode == "delay":
                    await asyncio.sleep(self._delay)
                target.write(data)
                await target.drain()
        target.transport.abort()
