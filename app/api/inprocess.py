"""A request of this gateway to itself, in the name of a key: the same middleware, routes and answers, no network.

Knows ASGI, and nothing of what is asked or why.
"""

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

from app.api.middleware import ON_BEHALF
from app.services.batch_lines import Answer

_TIMEOUT_MS = b"600000"
"""As long as any caller may wait: nobody does, and giving up would waste what is computed already."""


class InProcess:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, endpoint: str, body: bytes, key_id: str) -> Answer:
        """`POST` the JSON `body`; whatever goes wrong is in the answer."""
        status, headers, chunks = 500, Headers(), list[bytes]()
        unread: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            return unread.pop() if unread else await asyncio.Future[Any]()  # this client never hangs up

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], Headers(raw=message["headers"])
            else:
                chunks.append(message.get("body", b""))

        await self._app(_scope(endpoint, body, key_id), receive, send)
        again = status in (429, 503) and headers.get("x-should-retry") != "false"
        retry_after = float(headers.get("retry-after", 1)) if again else None
        return Answer(status, headers.get("x-request-id", ""), b"".join(chunks), retry_after)


def _scope(endpoint: str, body: bytes, key_id: str) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": endpoint,
        "raw_path": endpoint.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-timeout-ms", _TIMEOUT_MS),
        ],
        "client": None,
        "server": None,
        "state": {},
        ON_BEHALF: key_id,
    }
