"""`modelwright up`: the whole service on one machine. Starts things in order, watches them, stops them in order."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import typer
from rich.console import Console

from app.cli.environment import DATABASE_URL, REDIS_URL
from app.cli.run import Host, Port
from app.core.embedded import EmbeddedPostgres, EmbeddedValkey, note_urls, running_urls
from app.core.errors import Unavailable
from app.core.settings import Settings, get_settings

_READY_SECONDS = 60.0
# A process that keeps dying is started again after 1, 2, 4 ... 30 s.
_BACKOFF_LIMIT = 30.0


@dataclass
class _Part:
    """One supervised process."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    delay: float = 1.0
    start_at: float = 0.0

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # ctrl-C reaches the supervisor alone
                env=os.environ | {"MODELWRIGHT_SUPERVISED": "1"},
            )

    def stop(self, seconds: float) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Supervisor:
    """Everything `up` started, in order."""

    settings: Settings
    host: str
    port: int
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    stopping: Event = field(default_factory=Event)
    _undo: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    _parts: list[_Part] = field(default_factory=list)

    def run(self) -> None:
        """Start, wait for a signal, stop."""
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, lambda *_: self.stopping.set())
        try:
            self._servers()
            self._key()
            self._processes()
            self._wait_until_ready()
            if not self.stopping.is_set():
                self._say("ready", f"http://{self.host}:{self.port}  (API docs: /docs; ctrl-C stops)")
            while not self.stopping.wait(0.5):
                self._restart_dead()
        finally:
            self._stop()

    def _say(self, what: str, text: str) -> None:
        self.console.print(f"[bold cyan]{what:>10}[/bold cyan]  {text}", soft_wrap=True)

    def _servers(self) -> None:
        home, urls = self.settings.home.absolute(), {}
        home.mkdir(parents=True, exist_ok=True)
        if self.settings.database_url is None:
            postgres = EmbeddedPostgres.start(home)
            self._undo.append(("postgres", postgres.stop))
            urls[DATABASE_URL] = postgres.url
        if self.settings.redis_url is None:
            valkey = EmbeddedValkey.start(home)
            self._undo.append(("valkey", valkey.stop))
            urls[REDIS_URL] = valkey.url
        os.environ.update(urls)
        os.environ["MODELWRIGHT_HOME"] = str(home)
        note_urls(home, urls)
        self._undo.append(("", lambda: (home / "run" / "urls").unlink(missing_ok=True)))
        get_settings.cache_clear()
        self.settings = get_settings()
        for name, key in (("postgres", DATABASE_URL), ("valkey", REDIS_URL)):
            self._say(name, f"embedded, data in {home / name}" if key in urls else f"as {key} says")
        from app.registry.migrate import upgrade

        assert self.settings.database_url
        upgrade(self.settings.database_url)

    def _key(self) -> None:
        from app.auth.keys import ADMIN_KEY_FILE, KeyService
        from app.registry.session import Database

        assert self.settings.database_url
        database = Database(self.settings.database_url)
        key = KeyService(database).ensure_admin(self.settings.home, self.settings.admin_key_env)
        database.dispose()
        if key:
            self._say("admin key", f"{key}  (shown once; also in {self.settings.home / ADMIN_KEY_FILE})")

    def _processes(self) -> None:
        logs = self.settings.home / "logs"
        logs.mkdir(exist_ok=True)
        commands = {
            "inference": ["worker", "inference"],
            "trainer": ["worker", "trainer"],
            "gateway": ["gateway", "--host", self.host, "--port", str(self.port)],
        }
        for name, command in commands.items():
            part = _Part(name, command, logs / f"{name}.log")
            part.start()
            self._parts.append(part)
            # The gateway, started last, stops first: no request meets a missing worker. A trainer gets time for its
            # present step and a checkpoint.
            self._undo.append((name, lambda part=part: part.stop(30.0)))  # type: ignore[misc]
            self._say(name, f"started, log in {part.log}")

    def _wait_until_ready(self) -> None:
        until, url = time.monotonic() + _READY_SECONDS, f"http://{_reachable(self.host)}:{self.port}/health/ready"
        reason = "no answer"
        while time.monotonic() < until and not self.stopping.is_set():
            try:
                with urllib.request.urlopen(url, timeout=3):
                    return
            except urllib.error.HTTPError as exc:
                reason = exc.read().decode()
            except OSError as exc:
                reason = str(exc)
            for part in self._parts:
                if part.process and (code := part.process.poll()) is not None:
                    words = part.log.read_text(errors="replace")[-1500:]
                    raise Unavailable(f"{part.name} ended at once with code {code}; its log says:\n{words}")
            self.stopping.wait(0.1)
        if not self.stopping.is_set():
            raise Unavailable(f"not ready after {_READY_SECONDS:.0f} s: {reason}. See {self._parts[0].log.parent}")

    def _restart_dead(self) -> None:
        for part in self._parts:
            if part.process is not None and (code := part.process.poll()) is not None:
                self._say(part.name, f"[red]ended with code {code}[/red]; starting again in {part.delay:.0f} s")
                part.process, part.start_at = None, time.monotonic() + part.delay
                part.delay = min(part.delay * 2, _BACKOFF_LIMIT)
            elif part.process is None and time.monotonic() >= part.start_at:
                part.start()

    def _stop(self) -> None:
        for name, undo in reversed(self._undo):
            if name:
                self._say("stopping", name)
            undo()
        self._say("stopped", f"data stays in {self.settings.home}")


def _reachable(host: str) -> str:
    """The address at which this machine finds what listens on `host`."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"  # noqa: S104
    return f"[{host}]" if ":" in host else host


def up(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run the whole service: gateway, trainer, inference and, unless URLs are set, PostgreSQL and Valkey."""
    settings = get_settings()
    if running_urls(settings.home.absolute()):
        raise Unavailable(
            f"a service already runs over {settings.home.absolute()}: stop it, or set MODELWRIGHT_HOME to another "
            "folder"
        )
    _refuse_busy_port(host, port)
    Supervisor(settings, host, port).run()
    raise typer.Exit(0)


def _refuse_busy_port(host: str, port: int) -> None:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise Unavailable(f"port {port} of {host} is in use ({exc.strerror}): choose another with --port") from exc
