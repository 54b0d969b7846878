"""A small HTTP load generator: keep-alive connections that each send their next request when the last is answered.

Requests are bytes made beforehand and answers are not parsed, so that it takes little of the cores it shares with the
service: about 0.05 ms a request. A fixed rate, whatever the answers: `storm.py`.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Result:
    """Latencies in seconds, by status."""

    seconds: float
    latencies: dict[int, list[float]] = field(default_factory=dict)

    @property
    def statuses(self) -> Counter[int]:
        return Counter({status: len(found) for status, found in self.latencies.items()})

    @property
    def rate(self) -> float:
        """Answers with 200 a second."""
        return len(self.latencies.get(200, ())) / self.seconds

    def quantile(self, share: float, status: int = 200) -> float:
        """Of the latencies of answers with `status`."""
        found = sorted(self.latencies.get(status, [float("nan")]))
        return found[min(len(found) - 1, int(share * len(found)))]


class _Connection(asyncio.Protocol):
    """One connection, one request at a time. Status 0 stands for a connection that was lost."""

    def __init__(self) -> None:
        self._buffer, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self.closing = False
        """The server said that it closes after this answer, or it has closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, rest = (lower := head.lower()).partition(b"content-length: ")
        if len(body) >= int(rest.split(b"\r\n", 1)[0] or 0) and not self._answer.done():
            self._buffer = b""
            self.closing = b"connection: close" in lower
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the protocol's name)
        self.closing = True
        if not self._answer.done():
            self._answer.set_result(0)

    async def ask(self, request: bytes) -> int:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        status: int = await self._answer
        return status

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def http_request(host: str, port: int, path: str, key: str, body: bytes) -> bytes:
    """A POST of JSON, ready to send."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def closed_loop(
    host: str,
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    warm_up: float = 1.0,
    reconnect: bool = True,
) -> Result:
    """`connections` callers for `seconds`, after a warm-up that does not count; without `reconnect`, each until the
    server closes its connection."""
    counting = time.perf_counter() + warm_up
    until = counting + seconds
    result = Result(seconds)

    async def caller(turn: int) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
        for request in itertools.islice(itertools.cycle(requests), turn * 7, None):
            started = time.perf_counter()
            if started > until:
                break
            status = await connection.ask(request)
            ended = time.perf_counter()
            if counting < ended <= until:
                result.latencies.setdefault(status, []).append(ended - started)
            if connection.closing:
                connection.close()
                if not reconnect:
                    return
                try:
                    _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
                except ConnectionRefusedError:
                    return
        connection.close()

    await asyncio.gather(*(caller(turn) for turn in range(connections)))
    return result
