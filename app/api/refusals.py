"""Refusals of a full queue, given on the head of a request: no task, no ASGI, no body.

In a storm of ten times what the service can do, nine of ten answers are refusals. Through the application each takes
0.095 ms of a busy core, from here 0.055, which leaves 2 % more for answers. Whatever is in doubt (an unknown key, a
missing scope, a gateway that drains) goes through the application, which refuses what it must itself.
"""

import time

from app.api.errors import respond
from app.api.hot import HotRoutes
from app.api.middleware import RawHeaders, bearer, request_id
from app.auth.keys import KeyService
from app.contracts import scopes
from app.core.dataplane import DataPlane
from app.core.drain import draining
from app.core.errors import Overloaded
from app.core.metrics import GatewayMetrics

STATE = "refusals"
"""Name in the state that the application's lifespan hands to the server; `app/cli/protocol.py` looks there."""


class EarlyRefusals:
    """For one event loop."""

    def __init__(self, routes: HotRoutes, keys: KeyService, plane: DataPlane, metrics: GatewayMetrics) -> None:
        self._routes, self._keys, self._plane, self._metrics = routes, keys, plane, metrics
        self._last: dict[bool, tuple[Overloaded, bytes, bytes]] = {}
        """Under `/v2` or not -> the last one, and what was sent: in a flood the same answer is sent many times."""
        self.given = 0
        """Refusals so far."""

    @property
    def possible(self) -> bool:
        """Whether anybody may have to be refused: a quick no for a gateway that has room."""
        return self._plane.crowded and not draining.is_set()

    def answer(self, path: bytes, headers: RawHeaders) -> tuple[bytes, bytes] | None:
        """The refusal of a `POST` to `path`: its headers, all but the server's, with the blank line, and its body. None
        if the application is to answer."""
        started = time.perf_counter()
        if (found := self._routes.find(path.decode("latin-1"))) is None:
            return None
        caller = self._keys.cached(bearer(headers))
        if caller is None or not scopes.allows(caller.scopes, found[0].scope):
            return None
        if (full := self._plane.refusal(caller.key_id)) is None:
            return None
        self.given += 1
        head, body = self._worded(full, path.startswith(b"/v2/"))
        self._metrics.count("POST", found[0].route.path, 429, time.perf_counter() - started)
        return b"%sx-request-id: %s\r\n\r\n" % (head, request_id(headers).encode()), body

    def _worded(self, full: Overloaded, protocol: bool) -> tuple[bytes, bytes]:
        last, head, body = self._last.get(protocol, (None, b"", b""))
        if last is not full:
            response = respond(full, "/v2/" if protocol else "/")
            head, body = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers), bytes(response.body)
            self._last[protocol] = full, head, body
        return head, body
