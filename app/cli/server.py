"""uvicorn, with a way out that loses nothing: unready first, then closing connections one by one, then the listener.

A keep-alive client may send its next request in the very moment in which the server closes an idle connection, and is
told "connection reset". So while it drains, the server answers as always and says `connection: close` each time. The
same would happen to whoever has connected and is not yet accepted when the listener closes: nobody may come just then.
"""

import asyncio
import ctypes
import os
import signal
import socket
import struct
import time
from types import FrameType

import uvicorn

from app.api.refusals import STATE, EarlyRefusals
from app.core.drain import draining
from app.core.garbage import Garbage

_CLOSE = (b"connection", b"close")
_LAST_SECONDS = 0.25
"""For those on their way when the door closes: first to connect, then to ask."""

_SO_ATTACH_FILTER = 26
# Classic BPF over a TCP header: load the flags; of SYN and ACK, if SYN alone is set, drop the packet; else let it pass.
_NO_SYN = b"".join(
    struct.pack("HBBI", *line)
    for line in ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))
)


def let_nobody_in(listener: socket.socket) -> None:
    """Have the kernel ignore new connections; those under way still come. Who tries again in a second is refused.

    `listen(0)`, all there is off Linux and in sandboxes without socket filters, is not enough: one connection may still
    wait, and is reset at the close. With 64 clients that broke one request in every third stop.
    """
    program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
    fprog = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    except OSError:
        listener.listen(0)


class DrainingServer(uvicorn.Server):
    """Stops `drain_seconds` after the first signal, at once on the second.

    With a `listener` it is one of several processes and listens to their parent alone, who says SIGINT to all of them:
    a SIGTERM comes from a supervisor (systemd) that signals the whole group, the parent included.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float, listener: socket.socket | None = None) -> None:
        super().__init__(config)
        self._drain_seconds, self._listener = drain_seconds, listener
        self._until: float | None = None
        self._refused = 0

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or ([self._listener] if self._listener else None))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._listener is not None and sig == signal.SIGTERM:
            return
        if self._until is None:
            draining.set()
            self._until = time.monotonic() + self._drain_seconds
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._until is None:
            await super().startup(sockets)
            self._garbage = Garbage()
        else:  # told to stop while the application was being imported: nobody knows this process yet
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """First those who have connected and are not yet heard, then the connections that are still open."""
        for listener in (found for server in self.servers for found in server.sockets):
            with socket.socket(fileno=os.dup(listener.fileno())) as same:
                let_nobody_in(same)
        await asyncio.sleep(_LAST_SECONDS)
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LAST_SECONDS)
        await super().shutdown(sockets)

    def _waiting(self) -> int:
        """Requests in flight, and those that were refused since the last tick: in a storm of long texts few are in
        flight and a hundred refused, of which a look for cycles held up some for 25 ms."""
        refusals: EarlyRefusals | None = self.lifespan.state.get(STATE)
        before, self._refused = self._refused, refusals.given if refusals else 0
        return len(self.server_state.tasks) + self._refused - before

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        stop = await super().on_tick(counter)
        self._garbage.look(self._waiting())
        if self._until is None:
            return stop
        if _CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        for connection in self.server_state.connections:  # their requests took the headers of the time they came
            cycle = getattr(connection, "cycle", None)
            if cycle and not cycle.response_started:  # else its client was told that the connection stays
                cycle.keep_alive = False
        return stop or time.monotonic() >= self._until
