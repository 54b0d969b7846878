"""The gateway's HTTP protocol over real sockets: one write a response, nothing lost or out of order."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.api.refusals import STATE

CHUNKS = [bytes([65 + n]) * 40_000 for n in range(20)]


class Refusals:
    """Refuses every other `/refused`."""

    def __init__(self) -> None:
        self.possible, self.asked = True, 0

    def answer(self, path: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes] | None:
        assert (b"host", b"x") in headers
        self.asked += 1
        if path != b"/refused" or self.asked % 2 == 0:
            return None
        return b"content-length: 2\r\n\r\n", b"no"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """`/small` in one part, `/parts` in chunks, `/close` with the connection closed behind it."""
    while (await receive()).get("more_body"):
        pass
    chunks, headers = [b"hello"], [(b"connection", b"close")] if scope["path"] == "/close" else []
    if scope["path"] == "/parts":
        chunks = CHUNKS
    headers = [*headers, (b"content-length", str(sum(map(len, chunks))).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


def get(path: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path


def post(path: bytes, *headers: bytes, body: bytes = b"x" * 70_000) -> bytes:
    lines = [b"POST %s HTTP/1.1" % path, b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def statuses(parts: list[bytes]) -> list[int]:
    return [int(answer[:3]) for answer in b"".join(parts).split(b"HTTP/1.1 ")[1:]]


class Client(asyncio.Protocol):
    """Keeps what the kernel hands over, part by part."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None
        self.lost.set()


async def talk(asks: Sequence[bytes], refusals: Any = None, apart: float = 0.0) -> list[bytes]:
    """The server closes the connection: the last ask has it do so, or nothing comes for a second. `apart`: seconds
    between one ask and the next."""
    config = uvicorn.Config(
        app, http="app.cli.protocol:GatewayProtocol", loop="asyncio", lifespan="off", log_config=None
    )
    config.timeout_keep_alive = 1
    config.load()
    server_state = uvicorn.server.ServerState()
    server_state.default_headers = [(b"date", b"today")]
    loop = asyncio.get_running_loop()
    protocol: Any = config.http_protocol_class
    server = await loop.create_server(lambda: protocol(config, server_state, {STATE: refusals}), "127.0.0.1", 0)
    transport, client = await loop.create_connection(Client, *server.sockets[0].getsockname())
    for ask in asks if apart else [b"".join(asks)]:
        transport.write(ask)
        await asyncio.sleep(apart)
    async with asyncio.timeout(10):
        await client.lost.wait()
    server.close()
    return client.parts


def test_head_and_body_come_together() -> None:
    (part,) = asyncio.run(talk([get(b"/close")]))
    assert part.startswith(b"HTTP/1.1 200 OK\r\n") and part.endswith(b"\r\n\r\nhello")


def test_all_comes_in_order_before_the_connection_closes() -> None:
    found = b"".join(asyncio.run(talk([get(path) for path in (b"/small", b"/parts", b"/small", b"/parts", b"/close")])))
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in found.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [b"hello", b"".join(CHUNKS), b"hello", b"".join(CHUNKS), b"hello"]


REFUSED = b"HTTP/1.1 429 Too Many Requests\r\ndate: today\r\ncontent-length: 2\r\n\r\nno"


@pytest.mark.parametrize("apart", [0.0, 0.05], ids=["at once", "one by one"])
def test_a_refusal_leaves_its_body_behind_and_the_connection_as_it_was(apart: float) -> None:
    asks = [post(b"/refused"), post(b"/small"), post(b"/refused"), post(b"/refused"), get(b"/close")]
    if apart:
        asks = [part for ask in asks for part in (ask[:40], ask[40:9000], ask[9000:]) if part]
    refusals = Refusals()
    found = asyncio.run(talk(asks, refusals, apart))
    if apart:
        assert statuses(found) == [429, 200, 429, 200, 200] and refusals.asked == 4
        assert REFUSED in found, "in one write"
    else:  # what does not wait for the answer before it goes through the application, in order
        assert statuses(found) == [429, 200, 200, 200, 200] and refusals.asked == 2
        assert b"".join(found).startswith(REFUSED)


@pytest.mark.parametrize(
    "ask",
    [
        get(b"/refused"),
        post(b"/refused", b"connection: close"),
        post(b"/refused", b"expect: 100-continue"),
        post(b"/refused").replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["GET", "closing", "waits to be asked for its body", "HTTP/1.0"],
)
def test_what_is_not_plain_is_the_application_s(ask: bytes) -> None:
    refusals = Refusals()
    found = asyncio.run(talk([ask, get(b"/close")], refusals))
    assert 200 in statuses(found) and 429 not in statuses(found)
    assert refusals.asked == 0


def test_nobody_is_asked_while_there_is_room() -> None:
    refusals = Refusals()
    refusals.possible = False
    assert statuses(asyncio.run(talk([post(b"/refused"), get(b"/close")], refusals))) == [200, 200]
    assert refusals.asked == 0


def test_a_connection_that_idles_after_a_refusal_is_closed() -> None:
    ask = post(b"/refused")
    assert asyncio.run(talk([ask[:40], ask[40:9000], ask[9000:]], Refusals(), apart=0.05)) == [REFUSED]
