"""The fast lane: a plain call of a hot route goes straight to its endpoint; FastAPI answers everything else.

FastAPI spends 1 ms of CPU on finding a route and what it depends on, ten times what all the rest takes. A call that is
not plain (another content type, a body or header that is refused, a missing scope, too many bytes) goes on to FastAPI
as it came, so there is one implementation and every refusal has one wording. While the queue is full, calls are refused
before their body is read; `refusals.py` does that sooner for most of them.
"""

from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import Services
from app.api.errors import answer, respond
from app.api.hot import HotRoute, HotRoutes
from app.api.middleware import HOT
from app.contracts import scopes


class FastLane:
    """Behind authentication, before everything that FastAPI does."""

    def __init__(self, app: ASGIApp, routes: HotRoutes, services: Services) -> None:
        self._app, self._routes, self._services = app, routes, services
        self._limit = services.settings.max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or (match := self._routes.find(scope["path"])) is None:
            await self._app(scope, receive, send)
            return
        scope[HOT] = True
        found, parts = match
        caller = scope["state"]["caller"]
        if scopes.allows(caller.scopes, found.scope) and (full := self._services.plane.refusal(caller.key_id)):
            scope["route"] = found.route
            await respond(full, scope["path"])(scope, receive, send)  # the server throws away a body that nobody reads
            return
        received: list[Message] = []
        arguments = await self._arguments(found, parts, scope, receive, received)

        async def again() -> Message:
            return received.pop(0) if received else await receive()

        if arguments is None:
            await self._app(scope, again, send)
            return
        scope["route"] = found.route  # as the framework does: the log and the metrics name it
        if found.body is None:
            arguments["request"] = Request(scope, again)
        try:
            call = found.route.endpoint(**arguments, services=self._services, caller=caller)
            response: Response = await call
        except Exception as exc:
            response = await answer(Request(scope, again), exc)
            exc.__traceback__ = None  # it has the frames, and one of them has it: seventy objects in a cycle
        await response(scope, receive, send)

    async def _arguments(
        self, found: HotRoute, parts: dict[str, str], scope: Scope, receive: Receive, received: list[Message]
    ) -> dict[str, Any] | None:
        """Those of a plain call, else None; what was read of the body is in `received`."""
        headers = dict(reversed(scope["headers"]))  # of a name that is there twice the first, as everywhere
        if not scopes.allows(scope["state"]["caller"].scopes, found.scope):
            return None
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if found.body is not None and kind != b"application/json":
            return None
        try:
            arguments = found.arguments(parts, headers)
            if int(headers.get(b"content-length", 0)) > self._limit or not await self._read(receive, received):
                return None
            if found.body is not None:
                body = b"".join(part.get("body", b"") for part in received)
                arguments["body"] = found.body.model_validate_json(body)
        except ValueError:  # pydantic's errors are such, too
            return None
        return arguments

    async def _read(self, receive: Receive, received: list[Message]) -> bool:
        """Whether the whole body came and is not too large."""
        size = 0
        while True:
            message = await receive()
            received.append(message)
            size += len(message.get("body", b""))
            if message["type"] != "http.request" or size > self._limit:
                return False
            if not message.get("more_body", False):
                return True
