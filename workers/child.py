"""A training child seen from its parent: started, listened to, stopped. Knows no database.

The child is a fresh process because CUDA and fork do not mix and because its memory is given back when it ends; it
speaks JSON lines on a pipe (`app/contracts/training.py`).
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from pydantic import ValidationError

from app.contracts.training import CHILD_MESSAGE, ChildMessage, TrainingSpec
from app.core.logging import get_logger

log = get_logger(__name__)

ENTRY = "workers.training.entry"
"""The module that a child runs."""
STOPPED = 128 + signal.SIGTERM
"""Its exit code when it ended because it was asked to."""


class Child:
    """One run of `ENTRY`."""

    def __init__(self, spec: TrainingSpec, folder: Path) -> None:
        spec_file, self.log_file = folder / "spec.json", folder / "child.log"
        spec_file.write_text(spec.model_dump_json())
        read_fd, write_fd = os.pipe()
        with self.log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    ENTRY,
                    str(spec_file),
                    "--messages-fd",
                    str(write_fd),
                ],
                pass_fds=[write_fd],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        os.close(write_fd)
        self._messages: SimpleQueue[ChildMessage] = SimpleQueue()
        self._reader = Thread(target=self._read, args=(read_fd,), daemon=True, name="child-reader")
        self._reader.start()

    def _read(self, fd: int) -> None:
        with os.fdopen(fd, "rb") as stream:
            for line in stream:
                try:
                    self._messages.put(CHILD_MESSAGE.validate_json(line))
                except ValidationError:
                    log.exception("unreadable_child_message", line=line[:200].decode(errors="replace"))

    def wait(self, seconds: float) -> int | None:
        """The exit code (negative: a signal), or None while the child still runs after `seconds`."""
        try:
            code = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(timeout=10)  # what it said last may still be in the pipe
        return code

    def drain(self) -> list[ChildMessage]:
        """Messages since the last call."""
        found: list[ChildMessage] = []
        while True:
            try:
                found.append(self._messages.get_nowait())
            except Empty:
                return found

    def ask_to_stop(self) -> None:
        """SIGTERM: it saves a checkpoint after the present step and ends."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: nothing of the child is left when this returns."""
        self._process.kill()
        self.wait(10)

    def last_words(self, size: int = 2000) -> str:
        """The end of what it printed, for the log."""
        return self.log_file.read_bytes()[-size:].decode(errors="replace")
