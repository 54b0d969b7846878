"""Starts `modelwright up` on a free port with a home of its own, and stops it cleanly."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.core.process import free_port

_READY_SECONDS = 90.0


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    key: str


@contextmanager
def running_service() -> Iterator[Service]:
    """The whole service while the block runs. Raises `RuntimeError` with its output when it does not start."""
    with tempfile.TemporaryDirectory(prefix="modelwright-demo-", ignore_cleanup_errors=True) as home:
        port, log = free_port(), Path(home) / "up.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "up", "--port", str(port)],
                env=os.environ | {"MODELWRIGHT_HOME": home},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/health/ready", process, log)
            yield Service(url=url, key=(Path(home) / "admin.key").read_text().strip())
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=3):  # noqa: S310  (our own loopback address)
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the service did not become ready:\n{log.read_text(errors='replace')[-3000:]}")
