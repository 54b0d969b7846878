"""Gateways' and workers' ends of the prediction queue in this process, over toy artifacts and a real Valkey."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from app.contracts.messages import PredictReply
from app.core.dataplane import DataPlane
from app.core.embedded import EmbeddedValkey
from app.core.metrics import InferenceMetrics
from app.core.process import free_port
from app.core.settings import Settings
from workers.inference.consumer import Consumer

LABELS = {"abc": ("a", "b", "c"), "xy": ("x", "y"), "five": ("1", "2", "3", "4", "5")}


class Worker:
    """An inference worker in this process, with its counters."""

    def __init__(self, url: str, artifacts: Path, **settings: Any) -> None:
        self.located: list[str] = []
        self._artifacts = artifacts
        self._registry = CollectorRegistry()
        self.consumer = Consumer(url, Settings(**settings), self._locate, metrics=InferenceMetrics(self._registry))

    def _locate(self, version_id: str) -> tuple[Path, str]:
        self.located.append(version_id)
        folder = self._artifacts / version_id
        return folder, (folder / "digest").read_text()

    def count(self, name: str, **labels: str) -> float:
        """Over all models."""
        return sum(
            sample.value
            for metric in self._registry.collect()
            for sample in metric.samples
            if sample.name == f"modelwright_inference_{name}" and labels.items() <= sample.labels.items()
        )


class OwnValkey:
    """A Valkey that a test may kill, freeze and start again on the same port."""

    def __init__(self, home: Path) -> None:
        self._home, self._port, self._password = home, free_port(), secrets.token_urlsafe(12)
        self.start()

    def start(self) -> None:
        self.server = EmbeddedValkey.start(self._home, self._port, self._password)
        self.url = self.server.url

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.server.process.pid, number)

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()


@asynccontextmanager
async def gateway(url: str, **settings: Any) -> AsyncIterator[DataPlane]:
    plane = DataPlane(url, Settings(**settings))
    await plane.start()
    try:
        yield plane
    finally:
        await plane.stop()


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[Worker]:
    await asyncio.to_thread(worker.consumer.start)
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.consumer.stop)


@asynccontextmanager
async def service(url: str, artifacts: Path, **settings: Any) -> AsyncIterator[tuple[DataPlane, Worker]]:
    async with gateway(url, **settings) as plane, serving(Worker(url, artifacts, **settings)) as worker:
        yield plane, worker


def soon(seconds: float = 60.0) -> float:
    return time.time() + seconds


def text(word: int, times: int) -> str:
    return " ".join([f"w{word}"] * times)


def labels_of(reply: PredictReply) -> list[str]:
    assert reply.error is None, reply.message
    return [output["label"] for output in reply.outputs or ()]


async def until_waiting(plane: DataPlane, tokens: int) -> None:
    """Wait for a state of Valkey, which no event of this loop tells of."""
    async with asyncio.timeout(30):
        while await plane.waiting() != tokens:  # noqa: ASYNC110
            await asyncio.sleep(0)
