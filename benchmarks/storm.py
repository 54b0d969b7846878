"""An open-loop load generator for overload: requests leave at given moments, whatever became of the ones before.

Cheap, because in overload its cores are the service's: bytes made beforehand, connections used again, a callback
instead of a task for each request. It keeps each answer's time, and how late each request left: a
generator that cannot keep up measures itself. Knows nothing of what is asked.
"""

import asyncio
import gc
import itertools
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_LAST = 40.0
"""Seconds to wait for answers after the last request: longer than a request's default deadline of 30 s."""


class Answer(NamedTuple):
    """`at` seconds after the start a request left, and `seconds` later came `status`; 0 for a lost connection, and
    what was never answered has none."""

    at: float
    seconds: float
    status: int


@dataclass
class Storm:
    """What came of it. `late`: how long after its moment each request left; `cores`: what the generator itself used."""

    answers: list[Answer] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    cores: float = 0.0
    connections: int = 0


def poisson(rate: float, seconds: float, seed: int = 1) -> list[float]:
    """Moments at random, `rate` a second."""
    draw, at, moments = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        moments.append(at)
    return moments


def storm(host: str, port: int, requests: Sequence[bytes], moments: Sequence[float]) -> Storm:
    """One request at each moment (seconds from now), on as many connections as that takes."""
    result = Storm()
    gc.collect()
    gc.freeze()  # half a million answers, none of them in a cycle: looking for cycles would only make it late
    gc.disable()
    cpu, began = time.process_time(), time.perf_counter()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_storm(host, port, requests, moments, result))
    finally:
        gc.enable()
        gc.unfreeze()
    result.cores = (time.process_time() - cpu) / (time.perf_counter() - began)
    return result


async def _storm(host: str, port: int, requests: Sequence[bytes], moments: Sequence[float], result: Storm) -> None:
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    idle: list[_Connection] = []
    opened: set[_Connection] = set()
    connecting: set[asyncio.Task[None]] = set()
    finished = asyncio.Event()

    def answered(connection: _Connection, status: int) -> None:
        result.answers.append(Answer(connection.sent - began, time.perf_counter() - connection.sent, status))
        if not connection.closing:
            idle.append(connection)
        if len(result.answers) == len(moments):
            finished.set()

    async def connect_and_send(request: bytes) -> None:
        sent = time.perf_counter()
        try:
            _, connection = await loop.create_connection(lambda: _Connection(answered), host, port)
        except OSError:
            result.answers.append(Answer(sent - began, time.perf_counter() - sent, 0))
            return
        opened.add(connection)
        connection.send(request, sent)

    for moment, request in zip(moments, itertools.cycle(requests)):
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        now = time.perf_counter()
        result.late.append(now - began - moment)
        while idle and idle[-1].closing:
            idle.pop()
        if idle:
            idle.pop().send(request, now)
        else:
            task = loop.create_task(connect_and_send(request))
            connecting.add(task)
            task.add_done_callback(connecting.discard)
    with suppress(TimeoutError):
        await asyncio.wait_for(finished.wait(), _LAST)
    result.connections = len(opened)
    for connection in opened:
        connection.close()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, answered: "Callable[[_Connection, int], None]") -> None:
        self._answered, self._buffer = answered, b""
        self._transport: asyncio.Transport | None = None
        self._asked = False
        self.sent, self.closing = 0.0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio says so of streams

    def send(self, request: bytes, now: float) -> None:
        assert self._transport is not None
        self.sent, self._asked = now, True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head)
        if len(self._buffer) >= head + 4 + (int(length[1]) if length else 0):
            self.closing = b"connection: close" in self._buffer[:head].lower()
            status, self._buffer, self._asked = int(self._buffer[9:12]), b"", False
            self._answered(self, status)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the protocol's name)
        self.closing = True
        if self._asked:
            self._asked = False
            self._answered(self, 0)

    def close(self) -> None:
        self._asked = False
        if self._transport is not None:
            self._transport.close()
