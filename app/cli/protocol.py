"""uvicorn's HTTP protocol with one write a response, and with refusals that need no application.

uvicorn writes head and body apart, and uvloop hands each to the kernel at once: 0.01 ms and a wake-up of the client
twice.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.refusals import STATE, EarlyRefusals


class _Corked:
    """A transport that sends two writes of one turn of the event loop together: the head waits for its body, or for the
    turn to end."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._held = transport, list[bytes]()
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        self._held.append(data)
        if len(self._held) == 1:
            self._loop.call_soon(self._flush)
        else:
            self._flush()

    def _flush(self) -> None:
        if self._held and not self._transport.is_closing():
            self._transport.write(b"".join(self._held))
        self._held.clear()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Answered:
    """What uvicorn asks of the last request on a connection, where that was refused: it is over, and what still comes
    of its body is thrown away."""

    response_started = response_complete = keep_alive = True
    message_event = asyncio.Event()


class GatewayProtocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Corked(transport)))
        self._refusals: EarlyRefusals | None = self.app_state.get(STATE)

    def on_headers_complete(self) -> None:
        early = self._refusals
        refused = early.answer(self.url, self.headers) if early and early.possible and self._plain() else None
        if refused is None:
            super().on_headers_complete()
            return
        head, body = refused
        lines = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        self.transport.write(b"".join([STATUS_LINE[429], *lines, head]))
        self.transport.write(body)
        self.cycle = cast(Any, _Answered)
        self.on_response_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # A body that ends after its answer: its last part stopped the clock, and uvicorn starts it with answers only.
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            idle = self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_later(idle, self.timeout_keep_alive_handler)

    def _plain(self) -> bool:
        """Whether a POST is to be answered now, on a connection that stays open, and whose body comes unasked."""
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and getattr(self.cycle, "response_complete", True)  # of the call before, if there was one
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self.expect_100_continue
        )
