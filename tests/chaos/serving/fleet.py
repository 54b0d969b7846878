"""Gateways and inference workers as processes that can be stopped and killed, and versions of toy artifacts.

Knows no load and no promise. Each process leads a session of its own and writes a log of its own.
"""

import os
import re
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.auth.keys import KeyService
from app.contracts.queues import WORKERS
from app.core.process import free_port
from app.registry.migrate import upgrade
from app.registry.session import Database
from benchmarks.serving_model import publish
from tests.chaos.cluster import Part
from tests.chaos.servers import Postgres, Valkey, until
from tests.chaos.serving import ballast

READY_SECONDS = 60.0
WORDS = 32
"""The toys know so many words; with as many labels each word has its own."""


@dataclass
class Gateway:
    part: Part
    port: int


@dataclass
class Fleet:
    folder: Path
    gateways_count: int = 2
    workers_count: int = 2
    settings: dict[str, str] = field(default_factory=dict)
    """Further environment of every process, without the prefix."""
    labels: dict[str, list[str]] = field(default_factory=dict)
    """A version's name, as answers give it -> its labels: word k has label k."""

    def __enter__(self) -> "Fleet":
        self.folder.mkdir(parents=True)
        self.gateways: list[Gateway] = []
        self.workers: list[Part] = []
        self.postgres, self.valkey = Postgres(self.folder / "pg"), Valkey(self.folder / "valkey")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.postgres.start()
        self.valkey.start()
        upgrade(self.postgres.url)
        database = Database(self.postgres.url)
        self.key = KeyService(database).create("chaos", ["admin"])
        database.dispose()
        for number in range(self.workers_count):
            self.workers.append(self._part(f"worker-{number}", ["worker", "inference"]))
        for number in range(self.gateways_count):
            port = free_port()
            self.gateways.append(Gateway(self._part(f"gateway-{number}", ["gateway", "--port", str(port)]), port))
        for part in self.parts():
            part.start()
        self.http = httpx.Client(headers={"authorization": f"Bearer {self.key}"}, timeout=40.0)
        for part in self.parts():
            self.wait_for(part)

    def __exit__(self, *_: object) -> None:
        for part in self.parts():
            part.kill()
        if hasattr(self, "http"):
            self.http.close()
        self.postgres.close()
        self.valkey.client.close()
        with suppress(AssertionError):
            self.valkey.kill()
        shutil.rmtree(self.folder / "store", ignore_errors=True)

    def parts(self) -> list[Part]:
        return [*self.workers, *(gateway.part for gateway in self.gateways)]

    def _part(self, name: str, command: list[str]) -> Part:
        (self.folder / name).mkdir()
        env = {
            "HOME": str(self.folder / name),
            "STORE_URL": str(self.folder / "store"),
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": f"redis://127.0.0.1:{self.valkey.port}/0",
            "PROVIDER": "onnxruntime-cpu",
            "DRAIN_SECONDS": "0.5",
            "LOG_LEVEL": "warning",
            **self.settings,
        }
        prefixed = {f"MODELWRIGHT_{name}": value for name, value in env.items()}
        command = ["-m", "app", *command]
        return Part(name, command, {"OMP_NUM_THREADS": "1", **prefixed}, self.folder / f"{name}.log")

    def wait_for(self, part: Part) -> None:
        """Until a gateway answers, or a worker beats."""
        port = next((gateway.port for gateway in self.gateways if gateway.part is part), None)

        def lives() -> bool:
            assert part.alive, f"{part.name} ended: {part.log.read_text()[-2000:]}"
            if port is None:
                keys = self.valkey.client.keys(f"{WORKERS}:inference:*")
                return any(re.search(rf"-{part.pid}-", str(key)) for key in keys)
            with suppress(httpx.HTTPError):
                return self.http.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
            return False

        until(lives, READY_SECONDS, f"{part.name}; see {part.log}")

    def terminate(self, part: Part) -> int:
        """SIGTERM; the exit code."""
        os.kill(part.pid, signal.SIGTERM)
        assert part.process is not None
        return part.process.wait(60)

    def publish(self, name: str, versions: int = 1, *, layers: int = 0) -> None:
        """Further versions of `name`; each has labels and bytes of its own."""
        before = sum(version.startswith(f"{name}:") for version in self.labels)
        for number in range(before + 1, before + versions + 1):
            folder, version = self.folder / "artifact", f"{name}:{number}"
            self.labels[version] = [f"{version}-{word}" for word in range(WORDS)]
            ballast.build(folder, self.labels[version], layers=layers, seed=len(self.labels))
            publish(folder, self.postgres.url, self.folder / "store", name)
            shutil.rmtree(folder)

    def ask(self, method: str, path: str, *, gateway: int = 0, **options: Any) -> httpx.Response:
        return self.http.request(method, f"http://127.0.0.1:{self.gateways[gateway].port}{path}", **options)

    def point(self, name: str, *, gateway: int = 0, **target: Any) -> None:
        """Where `name` and `name@production` go."""
        answer = self.ask("PUT", f"/v1/models/{name}/aliases/production", gateway=gateway, json=target)
        assert answer.status_code == 200, answer.text
