"""Thousands of calls at once, of mixed versions, tasks, sizes, parameters and callers: each gets exactly its own rows.

What is right is what the same input is answered alone, in a batch of its own. Every random choice follows from the
seed that a failure names: `MODELWRIGHT_TEST_SEED=<n>` repeats it.
"""

import asyncio
import math
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest
import redis

from app.auth.keys import KeyService
from app.contracts.queues import WORKERS
from app.core.ids import new_id
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database
from model_store.store import Store
from tests import toy_artifact
from tests.integration.toy_service import ToyService
from workers.context import WorkerContext
from workers.serving import build_consumer

CALLS = 2000
POOL = 120
DIMENSIONS = 32
"""Inputs of a version: each may occur in many calls, and no two of a version have the same answer."""
CALLERS = 5
PATIENT = 60_000
"""Milliseconds."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """A version and, from `ask_alone` on, what each input of its pool is answered in full."""

    name: str
    kind: str
    """A task, or `multi-label`."""
    pool: list[Any]
    alone: list[Answer]

    @property
    def everything(self) -> Answer:
        """Parameters of the answer that all others are parts of."""
        return {"return_all_scores": True} if self.kind in ("text-classification", "multi-label") else {}

    def expected(self, number: int, parameters: Answer) -> Answer:
        """What input `number` of the pool is answered with these parameters."""
        full = self.alone[number]
        if self.kind == "sentence-embedding":
            return {"embedding": _cut(full["embedding"], parameters.get("dimensions"))}
        if self.kind == "token-classification":
            return full
        answer = {name: value for name, value in full.items() if name != "scores"}
        if "threshold" in parameters:
            answer["labels"] = [entry for entry in full["scores"] if entry["score"] >= parameters["threshold"]]
        if top_k := parameters.get("top_k") or (len(full["scores"]) if "return_all_scores" in parameters else 0):
            answer["scores"] = full["scores"][:top_k]
        return answer


def _cut(vector: list[float], dimensions: int | None) -> list[float]:
    """The first so many numbers, of length 1 again."""
    if dimensions is None or dimensions >= len(vector):
        return vector
    norm = max(math.sqrt(sum(value * value for value in vector[:dimensions])), 1e-12)
    return [value / norm for value in vector[:dimensions]]


@dataclass(frozen=True)
class Call:
    version: Version
    reference: str
    """What the caller names: the version, or its model where that has no other."""
    numbers: list[int]
    """Of inputs in the version's pool."""
    parameters: Answer
    timeout_ms: int

    @classmethod
    def draw(cls, draw: Random, versions: list[Version]) -> "Call":
        version = draw.choice(versions)
        size = draw.choices((1, draw.randint(2, 20), draw.randint(21, 200)), (70, 22, 8))[0]
        choices: dict[str, list[Answer]] = {
            "text-classification": [{}, {"top_k": draw.randint(1, 40)}, {"return_all_scores": True}],
            "multi-label": [{}, {"threshold": draw.random()}, {"top_k": 3, "threshold": 0.6}],
            "token-classification": [{}],
            "sentence-embedding": [{}, {"dimensions": draw.randint(1, DIMENSIONS)}],
        }
        numbers = [draw.randrange(POOL) for _ in range(size)]
        # One in ten gives up after 1 ms to 10 s: whether it is answered or not, nobody else's rows may move.
        timeout = round(10 ** draw.uniform(0, 4)) if draw.random() < 0.1 else PATIENT
        model = version.name.partition(":")[0]
        alone = [other.name.partition(":")[0] for other in versions].count(model) == 1
        reference = model if alone and draw.random() < 0.5 else version.name
        return cls(version, reference, numbers, draw.choice(choices[version.kind]), timeout)

    @property
    def body(self) -> Answer:
        inputs = [self.version.pool[number] for number in self.numbers]
        return {"model": self.reference, "inputs": inputs, "parameters": self.parameters}

    def problem(self, status: int, answer: Answer) -> str:
        """What is wrong with an answer; empty when nothing is."""
        if status == 503 and answer["error"]["code"] == "deadline_exceeded" and self.timeout_ms < PATIENT:
            return ""
        where = f"{self.reference} {self.parameters} {len(self.numbers)} inputs"
        if status != 200:
            return f"{where}: {status} {answer}"
        if answer["model"] != self.version.name or answer["usage"]["inputs"] != len(self.numbers):
            return f"{where}: answered by {answer['model']} with {answer['usage']}"
        expected = [self.version.expected(number, self.parameters) for number in self.numbers]
        for row, pair in enumerate(zip(answer["outputs"], expected, strict=True)):
            if not _same(*pair):
                return f"{where}: row {row} is {str(pair[0])[:200]}, alone it is {str(pair[1])[:200]}"
        return ""


def _same(found: Any, expected: Any) -> bool:
    """Equal, numbers to 1e-6: in other company a sum may be rounded otherwise."""
    if isinstance(found, float) and isinstance(expected, float):
        return abs(found - expected) < 1e-6
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[name], expected[name]) for name in found)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    return bool(found == expected)


@pytest.fixture
def seed() -> int:
    """Printed: pytest shows the output of a test that fails."""
    found = int(os.environ.get("MODELWRIGHT_TEST_SEED") or secrets.randbelow(10**6))
    print(f"MODELWRIGHT_TEST_SEED={found}")  # noqa: T201
    return found


@pytest.fixture
async def clients(
    settings: Settings, database: Database, keys: KeyService, tmp_path: Path, seed: int
) -> AsyncIterator[tuple[list[httpx2.AsyncClient], list[Version]]]:
    """Callers with keys of their own at one gateway with two workers, and the versions they may ask."""
    changes = {"home": tmp_path, "provider": "onnxruntime-cpu", "queue_tokens": 1 << 24}
    settings = settings.model_copy(update=changes)
    assert settings.redis_url is not None
    with redis.Redis.from_url(settings.redis_url) as valkey:  # what an earlier test left
        for old in [*valkey.scan_iter("modelwright:predict:*"), *valkey.scan_iter(f"{WORKERS}:inference:*")]:
            valkey.delete(old)
    context = WorkerContext(settings, database, Store(settings.store_path), settings.redis_url)
    versions = make_versions(context, Random(seed))
    app = create_app(settings)
    async with worker(context), worker(context), app.router.lifespan_context(app):
        made = [client(app, keys.create(f"caller-{number}", ["predict"])) for number in range(CALLERS)]
        yield made, versions
        for one in made:
            await one.aclose()


def client(app: Any, key: str) -> httpx2.AsyncClient:
    headers = {"authorization": f"Bearer {key}"}
    transport = httpx2.ASGITransport(app)
    return httpx2.AsyncClient(transport=transport, base_url="http://gateway", headers=headers, timeout=None)


@asynccontextmanager
async def worker(context: WorkerContext) -> AsyncIterator[None]:
    consumer = build_consumer(context)
    await asyncio.to_thread(consumer.start)
    try:
        yield
    finally:
        await asyncio.to_thread(consumer.stop)


def make_versions(context: WorkerContext, draw: Random) -> list[Version]:
    """Two classifiers with two versions each, a multi-label one, a tagger and an encoder."""
    toys, mark = ToyService(context, client=None, key=""), new_id("")[:8]  # type: ignore[arg-type]
    found: list[Version] = []
    for kind, model in (
        *[("text-classification", f"topics-{mark}")] * 2,
        *[("text-classification", f"moods-{mark}")] * 2,
        ("multi-label", f"flags-{mark}"),
        ("token-classification", f"names-{mark}"),
        ("sentence-embedding", f"vectors-{mark}"),
    ):
        task = "text-classification" if kind == "multi-label" else kind
        number = len(found)
        # As many labels as words, unlike any other version's: no two texts of other words have the same answer.
        labels = [f"{number}-{word}" for word in range(DIMENSIONS)]
        if kind == "token-classification":
            labels = list(toy_artifact.IOB2)
        row = toys.add(model, task=task, labels=labels, multi_label=kind == "multi-label")
        pool: list[Any] = [" ".join(words) for words in texts(draw)]
        if kind == "token-classification":  # longer than the model reads at once, too
            pool[::2] = [{"tokens": text.split() * draw.randint(1, 4)} for text in pool[::2]]
        found.append(Version(row.label, kind, pool, []))
    return found


def texts(draw: Random) -> list[tuple[str, ...]]:
    """Different ones, of 1 to 14 words."""
    found: dict[tuple[str, ...], None] = {}
    while len(found) < POOL:
        found[tuple(f"w{draw.randrange(toy_artifact.WORDS)}" for _ in range(draw.randint(1, 14)))] = None
    return list(found)


async def ask_alone(ask: httpx2.AsyncClient, version: Version) -> None:
    """Each input in a call of its own, with nothing beside it."""
    for value in version.pool:
        body = {"model": version.name, "inputs": [value], "parameters": version.everything}
        answer = await ask.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["batch_size"] <= 8, "it was not alone"  # a long text is read in several windows
        version.alone.extend(answer.json()["outputs"])
    assert len({str(answer) for answer in version.alone}) > POOL * 0.95, "a mix-up would not show"


async def test_thousands_of_calls_get_exactly_their_own_rows(
    clients: tuple[list[httpx2.AsyncClient], list[Version]], seed: int
) -> None:
    callers, versions = clients
    for version in versions:
        await ask_alone(callers[0], version)
    draw = Random(seed)
    calls = [Call.draw(draw, versions) for _ in range(CALLS)]
    batches: list[int] = []

    async def ask(number: int, call: Call) -> str:
        headers = {"x-request-timeout-ms": str(call.timeout_ms)}
        answer = await callers[number % CALLERS].post("/predict", json=call.body, headers=headers)
        if answer.status_code == 200:
            batches.append(answer.json()["batch_size"])
        return call.problem(answer.status_code, answer.json())

    problems = await asyncio.gather(*(ask(*numbered) for numbered in enumerate(calls)))
    wrong = [problem for problem in problems if problem]
    assert not wrong, f"{len(wrong)} of {CALLS} calls, seed {seed}: " + "\n".join(wrong[:5])
    assert len(batches) > CALLS * 0.85
    assert max(batches) > 16  # they did share batches


def test_the_check_sees_swapped_rows_and_swapped_answers() -> None:
    def row(number: int) -> Answer:
        label = {"label": f"l{number}", "score": 0.9}
        return {**label, "scores": [label, {"label": f"l{number + 1}", "score": 0.1}]}

    version = Version("toy:1", "text-classification", ["a", "b", "c"], [row(0), row(1), row(2)])

    def problem(rows: list[int], model: str = "toy:1") -> str:
        call = Call(version, "toy:1", [0, 1], {"top_k": 1}, PATIENT)
        outputs = [{**row(n), "scores": row(n)["scores"][:1]} for n in rows]
        return call.problem(200, {"model": model, "outputs": outputs, "usage": {"inputs": 2}})

    assert not problem([0, 1])
    assert Counter(bool(wrong) for wrong in (problem([1, 0]), problem([0, 2]), problem([0, 1], "toy:2"))) == {True: 3}
