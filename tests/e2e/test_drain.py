"""A gateway that is told to stop under load loses no request."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from app.core.embedded import EmbeddedPostgres, EmbeddedValkey
from app.core.process import free_port
from app.registry.migrate import upgrade
from benchmarks.load import closed_loop, http_request
from tests.e2e.conftest import until


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("drain")
    postgres, valkey = EmbeddedPostgres.start(folder), EmbeddedValkey.start(folder)
    upgrade(postgres.url)
    yield {
        "MODELWRIGHT_HOME": str(folder),
        "MODELWRIGHT_DATABASE_URL": postgres.url,
        "MODELWRIGHT_REDIS_URL": valkey.url,
        "MODELWRIGHT_DRAIN_SECONDS": "1",
    }
    valkey.stop()
    postgres.stop()


@contextmanager
def gateway(env: dict[str, str], log: Path) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """The port it answers on, and its process."""
    port = free_port()
    with log.open("wb") as output:
        command = [sys.executable, "-m", "app", "gateway", "--port", str(port)]
        process = subprocess.Popen(command, env=os.environ | env, stdout=output, stderr=output)

    def lives() -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
        except httpx2.HTTPError:
            return False

    try:
        until(lives, 60, "the gateway")
        yield port, process
    finally:
        process.kill()
        process.wait()


def test_a_stopping_gateway_is_unready_first_and_loses_nothing(env: dict[str, str], tmp_path: Path) -> None:
    request = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"

    async def load(port: int, process: "subprocess.Popen[bytes]") -> None:
        calls = asyncio.create_task(closed_loop("127.0.0.1", port, [request], connections=16, seconds=8.0, warm_up=0.0))
        await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        ready = await asyncio.to_thread(httpx2.get, f"http://127.0.0.1:{port}/health/ready")
        assert ready.status_code == 503
        assert ready.headers["connection"] == "close"
        assert not ready.json()["checks"]["gateway"]["ok"]
        found = await calls
        assert set(found.statuses) == {200}, found.statuses  # each was told before its connection was closed

    with gateway(env, tmp_path / "log") as (port, process):
        asyncio.run(load(port, process))
        assert process.wait(20) == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize("seconds", [0.5, 2.2], ids=["while it drains", "after its door is closed"])
def test_an_answer_to_a_request_from_before_the_stop_says_close(
    env: dict[str, str], tmp_path: Path, seconds: float
) -> None:
    """Else the client would send its next one on a connection that ends."""
    with gateway(env, tmp_path / "log") as (port, process):
        key = (Path(env["MODELWRIGHT_HOME"]) / "admin.key").read_text().strip()
        request = http_request("127.0.0.1", port, "/predict", key, b'{"model": "nobody", "inputs": "a"}')
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(request[:-5])
            time.sleep(0.2)  # the server has the head and waits for the rest
            process.send_signal(signal.SIGTERM)
            time.sleep(seconds)
            connection.sendall(request[-5:])
            head = connection.recv(65536).partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 404"), head
        assert b"connection: close" in head, head
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
