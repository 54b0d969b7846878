"""What wraps every request: its id, its log line, its metrics and its key. Pure ASGI: 0.01 ms, not 0.1.

Denied by default: a path that is not listed as public needs a working key, also when no route has it.
"""

import json
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import envelope, respond
from app.auth.keys import KeyService
from app.core.errors import ModelwrightError, Unauthenticated
from app.core.ids import new_id
from app.core.logging import REQUEST_ID, get_logger
from app.core.metrics import GatewayMetrics

log = get_logger("access")

PUBLIC = frozenset(
    {"/", "/docs", "/openapi.json", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
)
DOCS_ASSETS = "/docs/assets"


def _too_large(path: str) -> bytes:
    message = "the body is larger than this route accepts: send it in parts"
    return json.dumps(envelope(message, "invalid_request_error", "body_too_large", None, path)).encode()


def _surprise(path: str) -> dict[str, Any]:
    message = "something went wrong here; the log has it under x-request-id"
    return envelope(message, "server_error", "internal_error", None, path)


HOT = "modelwright.hot"
"""In the scope of a call of a hot route."""
ON_BEHALF = "modelwright.on_behalf"
"""In a scope that this process made itself: id of the key to act for. No server puts it into a caller's."""
RawHeaders = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


def _header(headers: RawHeaders, name: bytes) -> bytes:
    """The first one of that name, or nothing; `Headers` costs seven times as much."""
    for found, value in headers:
        if found == name:
            return bytes(value)
    return b""


def request_id(headers: RawHeaders) -> str:
    """The caller's own where it may be one, else a new one."""
    given = _header(headers, b"x-request-id")
    return given.decode() if _REQUEST_ID.fullmatch(given) else new_id("req_")


def bearer(headers: RawHeaders) -> str:
    """The key of `authorization: Bearer <key>`, or nothing."""
    scheme, _, key = _header(headers, b"authorization").decode("latin-1").partition(" ")
    return key if scheme.lower() == "bearer" else ""


class RequestContext:
    """Gives the request an id, then logs and counts its answer."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        named = request_id(scope["headers"])
        status, started, answered = 500, time.perf_counter(), False

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                message["headers"] = [*message["headers"], (b"x-request-id", named.encode())]
                if status == 413 and (headers := MutableHeaders(scope=message))["content-type"].startswith(
                    "text/plain"
                ):
                    # The framework's body limit speaks plain text, below every exception handler.
                    headers["content-type"] = "application/json"
                    headers["content-length"] = str(len(_too_large(scope["path"])))
            elif status == 413 and message.get("body") == b"Content Too Large":
                message["body"] = _too_large(scope["path"])
            await send(message)

        outer = REQUEST_ID.set(named)
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("unhandled_error")
            if answered:
                raise  # half an answer is out: the server can only close the connection
            await JSONResponse(_surprise(scope["path"]), 500)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            # The route's template, not the path: ids in labels would grow the metrics without end.
            route = getattr(scope.get("route"), "path", "unmatched")
            # Lines of batches are told apart: nobody waits for them, and they come by the ten thousand.
            method = "BATCH" if ON_BEHALF in scope else scope["method"]
            self._metrics.count(method, route, status, seconds)
            # What comes by the thousand a second is counted; a line each would cost more than the rest of the call.
            often = HOT in scope and (status < 300 or status == 429)
            quiet = often or route.startswith(("/health", "/v2/health")) or ON_BEHALF in scope
            (log.debug if quiet else log.info)(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1000, 2),
            )
            REQUEST_ID.reset(outer)


class Authentication:
    """Finds the caller by the bearer key and leaves it on `scope["state"]`; routes check their scope."""

    def __init__(self, app: ASGIApp, keys: KeyService) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        public = scope["type"] != "http" or scope["path"] in PUBLIC or scope["path"].startswith(f"{DOCS_ASSETS}/")
        if not public:
            try:
                scope.setdefault("state", {})["caller"] = await self._caller(scope)
            except ModelwrightError as exc:
                await _drain_and(respond(exc, scope["path"]), scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Any:
        if key_id := scope.get(ON_BEHALF):
            return self.keys.cached_by_id(key_id) or await run_in_threadpool(self.keys.check_by_id, key_id)
        if not (key := bearer(scope["headers"])):
            raise Unauthenticated(
                "this call needs a key: send the header `Authorization: Bearer <key>`", code="missing_api_key"
            )
        return self.keys.cached(key) or await run_in_threadpool(self.keys.check, key)


async def _drain_and(response: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer and close: the body of a refused upload is not worth reading."""
    response.headers["connection"] = "close"
    await response(scope, receive, send)
