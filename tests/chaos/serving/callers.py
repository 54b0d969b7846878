"""Callers in a closed loop, each with a connection of its own, who check every row that they are given.

A careful client: it moves on to the next gateway when it is told `connection: close` or refused, and asks nothing
twice. So whatever is not a 200 with exactly its own rows is a failure of the service.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from threading import Event, Thread
from typing import Any

from tests.chaos.serving.fleet import WORDS, Fleet

PATIENCE = 40.0
"""Seconds; the service's own deadline is 30."""
LOST = 0
"""Stands for the status of an answer that never came: the connection was reset or closed."""


@dataclass(frozen=True)
class Call:
    """Times are monotonic."""

    port: int
    started: float
    ended: float
    status: int
    model: str = ""
    """The version that answered."""
    problem: str = ""
    """What is wrong with the answer; empty when nothing is."""

    @property
    def seconds(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True)
class Question:
    model: str
    words: tuple[int, ...]
    """Input i is word `words[i]`, `lengths[i]` times."""
    lengths: tuple[int, ...]

    def body(self) -> dict[str, Any]:
        inputs = [" ".join([f"w{word}"] * length) for word, length in zip(self.words, self.lengths, strict=True)]
        return {"model": self.model, "inputs": inputs}

    def request(self, key: str) -> bytes:
        body = json.dumps(self.body()).encode()
        head = f"POST /predict HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    def problem(self, answer: dict[str, Any], labels: dict[str, list[str]]) -> str:
        """What is wrong with a 200's body: the rows must be the named version's own, in order."""
        expected = [labels[answer["model"]][word] for word in self.words]
        found = [output.get("label") for output in answer["outputs"]]
        if found == expected:
            return ""
        wrong = [(n, *pair) for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]]
        return f"{answer['model']} gave {len(found)} rows for {len(expected)} inputs; wrong are {wrong[:3]}"


def mixed(model: str) -> Callable[[Random], Question]:
    """Mostly one text; now and then up to 100, which are cut into two requests."""

    def ask(draw: Random) -> Question:
        size = draw.choice((1, 1, 1, 1, 3, 8, 100)) if draw.random() < 0.2 else 1
        words = tuple(draw.randrange(WORDS) for _ in range(size))
        return Question(model, words, tuple(draw.randint(1, 14) for _ in words))

    return ask


@dataclass
class Load:
    """Runs in a thread of its own while the block lasts; afterwards `calls` holds everything that was asked."""

    fleet: Fleet
    ask: Callable[[Random], Question]
    seed: str
    callers: int = 16
    pause: float = 0.0
    """Seconds between an answer and the caller's next question."""
    calls: list[Call] = field(default_factory=list)
    asked: dict[int, float] = field(default_factory=dict)
    """Caller -> when its last question began."""

    def __enter__(self) -> "Load":
        self._stopping = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._run()), name="callers")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def failures(self) -> list[Call]:
        return [call for call in self.calls if call.problem]

    def told(self) -> str:
        """The failures in words."""
        kinds = Counter(f"{call.status or 'connection lost'}" for call in self.failures)
        return ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "0"

    def quantile(self, share: float, *times: tuple[float, float]) -> float:
        """Of the seconds of all calls, or of those that began at these times."""
        spans = times or [(0.0, float("inf"))]
        found = sorted(c.seconds for c in self.calls if any(since <= c.started < until for since, until in spans))
        return found[min(len(found) - 1, int(share * len(found)))]

    async def _run(self) -> None:
        await asyncio.gather(*(self._caller(number) for number in range(self.callers)))

    async def _caller(self, number: int) -> None:
        draw, link = Random(f"{self.seed}-{number}"), _Link([g.port for g in self.fleet.gateways], number)
        while not self._stopping.is_set():
            question = self.ask(draw)
            self.asked[number] = started = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    port, status, body = await link.ask(question.request(self.fleet.key))
            except (OSError, EOFError, TimeoutError) as exc:
                link.close()
                port, status, body, problem = link.port, LOST, b"", f"{type(exc).__name__}: {exc}"
            else:
                problem = body[:300].decode(errors="replace") if status != 200 else ""
            answer = json.loads(body) if status == 200 else {}
            if answer:
                problem = question.problem(answer, self.fleet.labels)
            self.calls.append(Call(port, started, time.monotonic(), status, answer.get("model", ""), problem))
            if self.pause:
                await asyncio.sleep(self.pause)
        link.close()


class _Link:
    """A connection to one of the gateways."""

    def __init__(self, ports: list[int], first: int) -> None:
        self._ports, self._at = ports, first % len(ports)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def port(self) -> int:
        return self._ports[self._at]

    async def ask(self, request: bytes) -> tuple[int, int, bytes]:
        """Who answered, status and body. Raises `OSError` or `EOFError` when the connection was lost."""
        reader, writer = self._streams = self._streams or await self._connect()
        port = self.port
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n", 1)[0]))
        if b"connection: close" in head:
            self.close()
            self._move()
        return port, int(head[9:12]), body

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(50):
            try:
                return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
            except ConnectionRefusedError:
                self._move()
                await asyncio.sleep(0.02)
        raise ConnectionRefusedError("every gateway refused for a second")

    def _move(self) -> None:
        self._at = (self._at + 1) % len(self._ports)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
