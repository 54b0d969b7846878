"""The gateway's HTTP protocol over real sockets: one write a response, nothing lost or out of order."""

import asyncio
from collections.abc import Sequence

import uvicorn
from starlette.types import Receive, Scope, Send

ASK = b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKS = [bytes([65 + n]) * 40_000 for n in range(20)]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """`/small` in one part, `/parts` in chunks, `/close` with the connection closed behind it."""
    await receive()
    chunks, headers = [b"hello"], [(b"connection", b"close")] if scope["path"] == "/close" else []
    if scope["path"] == "/parts":
        chunks = CHUNKS
    headers = [*headers, (b"content-length", str(sum(map(len, chunks))).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})


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


async def talk(asks: Sequence[bytes]) -> list[bytes]:
    """The last ask has the server close the connection."""
    config = uvicorn.Config(
        app, http="app.cli.protocol:OneWriteProtocol", loop="asyncio", lifespan="off", log_config=None
    )
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: config.http_protocol_class(config, state, {}), "127.0.0.1", 0)  # type: ignore[call-arg]
    transport, client = await loop.create_connection(Client, *server.sockets[0].getsockname())
    transport.write(b"".join(ASK % path for path in asks))
    async with asyncio.timeout(10):
        await client.lost.wait()
    server.close()
    return client.parts


def test_head_and_body_come_together() -> None:
    (part,) = asyncio.run(talk([b"/close"]))
    assert part.startswith(b"HTTP/1.1 200 OK\r\n") and part.endswith(b"\r\n\r\nhello")


def test_all_comes_in_order_before_the_connection_closes() -> None:
    found = b"".join(asyncio.run(talk([b"/small", b"/parts", b"/small", b"/parts", b"/close"])))
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in found.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [b"hello", b"".join(CHUNKS), b"hello", b"".join(CHUNKS), b"hello"]
