"""The whole service as processes, once a session, with real MiniLM weights."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from app.core.process import free_port
from demo.topics import topic_rows

READY_SECONDS = 90.0
JOB_SECONDS = 240.0


@dataclass(frozen=True)
class Service:
    url: str
    key: str
    home: Path
    process: "subprocess.Popen[bytes] | None" = None

    def openai(self, *, strict: bool = False) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, _strict_response_validation=strict)

    def predict(self, **body: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx2.post(f"{self.url}/predict", json=body, headers=headers, timeout=60)


def start(*command: str, home: Path, log: Path, **env: str) -> "subprocess.Popen[bytes]":
    """A `modelwright` command in a session of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "app", *command],
            env=os.environ | {"MODELWRIGHT_HOME": str(home), "MODELWRIGHT_HEARTBEAT_SECONDS": "0.5", **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process: "subprocess.Popen[bytes]", sig: signal.Signals = signal.SIGINT) -> int:
    """The exit code, after at most 60 seconds."""
    process.send_signal(sig)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when `condition` holds; fail after `seconds`. Looks ten times a second: processes tell no other way."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready", timeout=3).status_code == 200
    except httpx2.HTTPError:
        return False


@contextmanager
def running(home: Path, **env: str) -> Iterator[Service]:
    """`modelwright up` while the block runs."""
    port, log = free_port(), home / "up.log"
    process = start("up", "--port", str(port), home=home, log=log, **env)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_ready(url) or process.poll() is not None, READY_SECONDS, "ready")
        assert process.poll() is None, log.read_text()
        yield Service(url, (home / "admin.key").read_text().strip(), home, process)
    finally:
        if process.poll() is None:
            assert stop(process) == 0, log.read_text()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("home")) as found:
        yield found


def wait_for(client: OpenAI, job_id: str) -> FineTuningJob:
    """The job at its end."""

    def ended() -> bool:
        return client.fine_tuning.jobs.retrieve(job_id).status in ("succeeded", "failed", "cancelled")

    until(ended, JOB_SECONDS, f"end of {job_id}")
    return client.fine_tuning.jobs.retrieve(job_id)


def upload(client: OpenAI, rows: list[dict[str, Any]]) -> str:
    data = io.BytesIO("\n".join(json.dumps(r) for r in rows).encode())
    return client.files.create(file=data, purpose="fine-tune").id


QUICK = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "max_length": 32}}}


@pytest.fixture(scope="session")
def topics(service: Service) -> FineTuningJob:
    """A text classifier, trained for one epoch on real messages."""
    client = service.openai()
    file_id = upload(client, topic_rows()[:300])
    job = client.fine_tuning.jobs.create(
        model="all-MiniLM-L6-v2",
        training_file=file_id,
        suffix="topics",
        seed=1,
        method=QUICK,  # type: ignore[arg-type]
    )
    job = wait_for(client, job.id)
    assert job.status == "succeeded", job.error
    return job
