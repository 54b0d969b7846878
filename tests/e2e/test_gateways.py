"""Several gateway processes on one port: both answer, one that is killed is replaced, a stop loses no request."""

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from prometheus_client.multiprocess import MultiProcessCollector

from app.auth.keys import KeyService
from app.core.process import free_port
from app.registry.session import Database
from benchmarks.load import closed_loop
from tests.e2e.conftest import start, until

LIVE = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"
COUNTED = 'modelwright_http_requests_total{method="GET",route="/health/live",status="200"}'


@dataclass(frozen=True)
class Gateways:
    parent: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pids(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text().split()
        ]

    def lives(self) -> bool:
        """On a connection of its own, so any of them may be the one."""
        try:
            return httpx2.get(f"{self.url}/health/live", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def metrics_folder(self) -> Path:
        environ = Path(f"/proc/{self.pids()[0]}/environ").read_text()
        return Path(re.findall(r"PROMETHEUS_MULTIPROC_DIR=([^\0]+)", environ)[0])

    def answered(self, pid: int) -> int:
        """Requests that this one process counted."""
        file = self.metrics_folder() / f"counter_{pid}.db"
        if not file.exists():
            return 0
        found = MultiProcessCollector.merge([str(file)])  # type: ignore[no-untyped-call]
        return int(sum(s.value for m in found if m.name == "modelwright_http_requests" for s in m.samples))

    def all_answer(self) -> bool:
        return self.lives() and len(self.pids()) == 2 and all(self.answered(pid) for pid in self.pids())


@contextmanager
def gateways(home: Path, **env: str) -> Iterator[Gateways]:
    port, log = free_port(), home / "gateways.log"
    env = env | {"TMPDIR": str(home)}  # a parent that is killed leaves its counters there
    parent = start("gateway", "--port", str(port), "--processes", "2", home=home, log=log, **env)
    try:
        yield Gateways(parent, port, log)
    finally:
        if parent.poll() is None:
            parent.kill()  # the kernel tells the others
            parent.wait()


@pytest.fixture
def env(database_url: str, redis_url: str) -> dict[str, str]:
    return {
        "MODELWRIGHT_DATABASE_URL": database_url,
        "MODELWRIGHT_REDIS_URL": redis_url,
        "MODELWRIGHT_DRAIN_SECONDS": "3",  # of which four questions need a part on a busy machine
    }


def test_two_processes_are_one_gateway(env: dict[str, str], database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    headers = {"authorization": f"Bearer {KeyService(database).create('watcher', ['read'], None)}"}
    database.dispose()
    with gateways(tmp_path, **env) as found:

        def shown() -> float:
            """What /metrics says, whichever process is asked."""
            values = set()
            for _ in range(6):
                text = httpx2.get(f"{found.url}/metrics", headers=headers, timeout=5).raise_for_status().text
                values |= {line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(COUNTED)}
                assert text.count("\nmodelwright_predict_queue_tokens ") == 1
            assert len(values) == 1, values
            return float(values.pop())

        until(found.all_answer, 60, "an answer of each process")
        before = shown()
        assert all(found.lives() for _ in range(20))
        assert shown() == before + 20

        first, other = found.pids()
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in found.pids(), 5, "the end of one")
        assert all(found.lives() for _ in range(20))  # meanwhile the other one answers, also what had waited
        assert shown() == before + 40  # what the dead one counted is kept
        until(found.all_answer, 60, "an answer of its successor")
        assert other in found.pids()

        folder, pids = found.metrics_folder(), found.pids()

        async def stop_under_load() -> None:
            calls = asyncio.create_task(
                closed_loop("127.0.0.1", found.port, [LIVE], connections=16, seconds=8.0, warm_up=0.0)
            )
            await asyncio.sleep(0.5)
            found.parent.send_signal(signal.SIGTERM)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)  # as systemd does
            await asyncio.sleep(0.4)
            for _ in range(4):
                reader, writer = await asyncio.open_connection("127.0.0.1", found.port)
                writer.write(b"GET /health/ready HTTP/1.1\r\nhost: a\r\n\r\n")
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                writer.close()
                assert head.startswith(b"http/1.1 503") and b"connection: close" in head, head
            statuses = (await calls).statuses
            assert set(statuses) == {200}, statuses

        asyncio.run(stop_under_load())
        assert found.parent.wait(20) == 0, found.log.read_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert not folder.exists()


def test_a_second_signal_stops_at_once_and_a_killed_parent_leaves_nobody(env: dict[str, str], tmp_path: Path) -> None:
    with gateways(tmp_path, **env | {"MODELWRIGHT_DRAIN_SECONDS": "60"}) as found:
        until(found.all_answer, 60, "an answer of each process")
        found.parent.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert found.lives()
        found.parent.send_signal(signal.SIGTERM)
        assert found.parent.wait(10) == 0, found.log.read_text()
    with gateways(tmp_path, **env) as found:
        until(found.all_answer, 60, "an answer of each process")
        pids = found.pids()
        found.parent.kill()
        found.parent.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 15, "the end of all")


def test_processes_that_cannot_start_are_not_started_for_ever(env: dict[str, str], tmp_path: Path) -> None:
    with gateways(tmp_path, **env | {"MODELWRIGHT_REDIS_URL": "no-scheme"}) as found:
        assert found.parent.wait(60) == 1, found.log.read_text()
    assert "must specify one of the following schemes" in found.log.read_text()
