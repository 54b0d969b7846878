"""Peers as processes: their virtual environments, start, first answer, stop. Knows no peer by name."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

from app.core.process import die_with_parent, free_port
from benchmarks.peers import STAMP, Peer

HOST = "127.0.0.1"
_ROOT = Path(__file__).parents[2]


def install(peer: Peer, venv: Path) -> None:
    """A virtual environment with the peer's requirements, unless it is there."""
    if peer.installed(venv):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *peer.requirements], check=True)
    (venv / STAMP).write_text("\n".join(peer.requirements))


@contextmanager
def running(peer: Peer, venv: Path, artifact: Path, *, seconds: float = 90.0) -> Iterator[int]:
    """The port of a peer that answers. TimeoutError, with the end of its log, when it does not."""
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, Path(home, "log").open("w+b") as log:
        # One thread a worker, which is how the peers' own pages tell to avoid more threads than cores.
        env = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"} | peer.env
        command = [str((venv / "bin" / "python").absolute()), "-m", peer.module, str(artifact.absolute()), str(port)]
        process = subprocess.Popen(
            command,
            cwd=home,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
        try:
            _until_answering(peer, port, process, time.monotonic() + seconds, Path(home, "log"))
            yield port
        finally:
            _stop(process)


def ask(peer: Peer, port: int, text: str) -> str:
    """The label that the peer answers. Raises `httpx2.HTTPError`."""
    headers = {"content-type": "application/json"}
    answer = httpx2.post(f"http://{HOST}:{port}{peer.path}", content=peer.body(text), headers=headers, timeout=10)
    answer.raise_for_status()
    return peer.label(answer.content)


def _until_answering(peer: Peer, port: int, process: subprocess.Popen[bytes], until: float, log: Path) -> None:
    while process.poll() is None and time.monotonic() < until:
        try:
            ask(peer, port, "hello")
        except httpx2.HTTPError:
            asyncio.run(asyncio.sleep(0.2))
        else:
            return
    ended = "ended" if process.poll() is not None else "did not answer"
    raise TimeoutError(f"{peer.module} {ended}; its log says:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, and after 20 s end what is left of its session, children included."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
