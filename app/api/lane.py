"""The fast lane: a plain call of a hot route goes straight to its endpoint; FastAPI answers everything else.

FastAPI spends 1 ms of CPU on finding a route and what it depends on, ten times what all the rest takes. A hot route
stays what FastAPI made of it: method, path, scope, body, headers and endpoint are read off it here. A call that is not
plain (another content type, a body or header that is refused, a missing scope, too many bytes) goes on to FastAPI as
it came, so there is one implementation and every refusal has one wording. While the queue is full, calls are refused
before their body is read.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import Services, declared_scope, get_caller, get_services
from app.api.errors import answer, respond
from app.api.middleware import HOT
from app.contracts import scopes
from app.core.errors import Overloaded

E = TypeVar("E", bound=Callable[..., Any])

_MARK = "modelwright_hot"


def hot(endpoint: E) -> E:
    """Put an endpoint on the lane. It returns a `Response` and takes `services`, `caller`, parts of the path, headers,
    and either `body`, a model read from JSON, or the `request`."""
    setattr(endpoint, _MARK, True)
    return endpoint


@dataclass(frozen=True, slots=True)
class _HotRoute:
    route: APIRoute
    scope: scopes.Scope
    body: type[BaseModel] | None
    path: tuple[tuple[str, TypeAdapter[Any]], ...]
    """Name, and what it must be."""
    headers: tuple[tuple[bytes, str, TypeAdapter[Any]], ...]
    """Name on the wire, name of the argument, and what it must be."""

    @classmethod
    def of(cls, route: APIRoute) -> "_HotRoute":
        """Raises `RuntimeError` for a route that asks for more than the lane gives."""
        wants, scope = route.dependant, declared_scope(route.dependencies)
        named = {d.name: d.call for d in wants.dependencies if d.name}
        bodies: dict[str, Any] = {field.name: field.field_info.annotation for field in wants.body_params}
        reads = [*bodies, *([wants.request_param_name] if wants.request_param_name else [])]
        fits = named == {"services": get_services, "caller": get_caller} and reads in (["body"], ["request"])
        if scope is None or not fits or wants.query_params or wants.cookie_params or route.methods != {"POST"}:
            raise RuntimeError(f"{route.path} cannot be hot: see `hot` for what the endpoint of such a route takes")
        path = [(field.name, TypeAdapter(field.field_info.rebuild_annotation())) for field in wants.path_params]
        headers = [
            (field.alias.encode(), field.name, TypeAdapter(field.field_info.rebuild_annotation()))
            for field in wants.header_params
        ]
        return cls(route, scope, bodies.get("body"), tuple(path), tuple(headers))

    def arguments(self, found: dict[str, str], headers: dict[bytes, bytes]) -> dict[str, Any]:
        """Those from path and headers. Raises `ValueError`."""
        values = {name: kind.validate_python(found[name]) for name, kind in self.path}
        for wire, name, kind in self.headers:
            if wire in headers:
                values[name] = kind.validate_python(headers[wire].decode("latin-1"))
        return values


class FastLane:
    """Behind authentication, before everything that FastAPI does."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter], services: Services) -> None:
        self._app, self._services = app, services
        self._limit = services.settings.max_request_bytes
        self._refusals: dict[bool, tuple[Overloaded, Response]] = {}
        """Under `/v2` or not -> the last one, as it was sent."""
        marked = [r for router in routers for r in router.routes if hasattr(getattr(r, "endpoint", None), _MARK)]
        routes = [_HotRoute.of(route) for route in marked if isinstance(route, APIRoute)]
        self._exact = {found.route.path: found for found in routes if not found.path}
        self._templates = [found for found in routes if found.path]
        self._endings = {found.route.path.rpartition("/")[2] for found in self._templates}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or (match := self._match(scope["path"])) is None:
            await self._app(scope, receive, send)
            return
        scope[HOT] = True
        found, parts = match
        caller = scope["state"]["caller"]
        if scopes.allows(caller.scopes, found.scope) and (full := self._services.plane.refusal(caller.key_id)):
            scope["route"] = found.route
            await self._refuse(full, scope, receive, send)
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
        await response(scope, receive, send)

    async def _refuse(self, full: Overloaded, scope: Scope, receive: Receive, send: Send) -> None:
        """The server throws away a body that nobody reads. In a flood the same answer is sent many times."""
        protocol = scope["path"].startswith("/v2/")
        if self._refusals.get(protocol, (None, None))[0] is not full:
            self._refusals[protocol] = (full, respond(full, scope["path"]))
        await self._refusals[protocol][1](scope, receive, send)

    def _match(self, path: str) -> tuple[_HotRoute, dict[str, str]] | None:
        if exact := self._exact.get(path):
            return exact, {}
        if path.rpartition("/")[2] in self._endings:
            for found in self._templates:
                if match := found.route.path_regex.match(path):
                    return found, match.groupdict()
        return None

    async def _arguments(
        self, found: _HotRoute, parts: dict[str, str], scope: Scope, receive: Receive, received: list[Message]
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
