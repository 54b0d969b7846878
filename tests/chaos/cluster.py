"""A whole service as processes that can be hurt: servers, proxies before them, a gateway and trainers.

Each process leads a session of its own, reaches the servers only through proxies, and writes a log of its own.
"""

import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, Signals
from typing import NamedTuple

import httpx

from app.auth.keys import KeyService
from app.core.process import free_port
from app.registry.migrate import upgrade
from app.registry.session import Database
from tests.chaos.audit import Audit
from tests.chaos.client import Client
from tests.chaos.journal import Journal
from tests.chaos.ledger import Ledger
from tests.chaos.processes import command_line, descendants, signal_tree
from tests.chaos.proxy import Loop, Proxy
from tests.chaos.servers import Postgres, Valkey, until
from tests.chaos.toy import JOURNAL, STEP_SECONDS

READY_SECONDS = 60.0
_WORK = re.compile(r"/work/\d+-([^/ ]+)-(\d+)/spec.json")


class Child(NamedTuple):
    """A process that works on a job."""

    pid: int
    job_id: str
    fence: int


@dataclass
class Part:
    """A process of ours. `name` and the number of its start are its `application_name` in Postgres."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def writer(self) -> str:
        return f"{self.name}.{self.starts}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.command],
                env=os.environ | self.env | {"PGAPPNAME": self.writer},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, sig: Signals) -> None:
        """To the process and all its children."""
        signal_tree(self.pid, sig)

    def kill(self) -> None:
        """All of it."""
        if self.process is not None:
            self.signal(SIGKILL)
            self.process.wait()

    def kill_parent(self) -> list[int]:
        """The process alone; returns the children it had."""
        children = descendants(self.pid)
        os.kill(self.pid, SIGKILL)
        assert self.process is not None
        self.process.wait()
        return children

    def children(self) -> list[Child]:
        """What it runs: a training, exports of checkpoints beside it."""
        pids = descendants(self.pid) if self.alive else []
        found = [(pid, _WORK.search(command_line(pid))) for pid in pids]
        return [Child(pid, match[1], int(match[2])) for pid, match in found if match]


@dataclass
class Cluster:
    folder: Path
    models: Path
    trainers_count: int = 2
    lease_seconds: float = 5.0
    heartbeat_seconds: float = 0.5
    step_seconds: float = 0.02
    disk_mib: int | None = None
    """Put the store on a file system of this size, where that is possible."""
    trainers: list[Part] = field(default_factory=list)

    def __enter__(self) -> "Cluster":
        self.folder.mkdir(parents=True)
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        self.journal = Journal(self.folder / "journal")
        self.store = self.folder / "store"
        self.store.mkdir()
        self.disk_reason = self._mount() if self.disk_mib else "not asked for"
        self._loop = Loop()
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
        self.audit = Audit(self.postgres.url)
        self.audit.install()
        database = Database(self.postgres.url)
        key = KeyService(database).create("chaos", ["admin"])
        database.dispose()
        self.proxies = {
            f"{server}-{side}": Proxy(self._loop, upstream)
            for server, upstream in (("postgres", self.postgres.socket), ("valkey", self.valkey.port))
            for side in ("gateway", "trainer")
        }
        port = free_port()
        self.gateway = self._part("gateway", ["-m", "app", "gateway", "--port", str(port)], "gateway")
        self.client = Client(f"http://127.0.0.1:{port}", key, self.ledger)
        self.gateway.start()
        for _ in range(self.trainers_count):
            self.add_trainer()
        self.wait_until_ready()

    def __exit__(self, *_: object) -> None:
        for part in [*self.trainers, *([self.gateway] if hasattr(self, "gateway") else [])]:
            part.kill()
        if hasattr(self, "client"):
            self.client.close()
        for proxy in getattr(self, "proxies", {}).values():
            proxy.close()
        if hasattr(self, "audit"):
            self.audit.close()
        self.postgres.close()
        self.valkey.client.close()
        with suppress(AssertionError):
            self.valkey.kill()
        self._loop.close()
        self.ledger.close()
        if not self.disk_reason:
            subprocess.run(["umount", "--lazy", str(self.store)], check=True)

    def _mount(self) -> str:
        """Why the store is not on a file system of its own; empty when it is."""
        options = ["-t", "tmpfs", "-o", f"size={self.disk_mib}m", "chaos", str(self.store)]
        try:
            done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "there is no mount command"
        return "" if done.returncode == 0 else f"no tmpfs could be mounted: {done.stderr.strip()}"

    def _part(self, name: str, command: list[str], side: str) -> Part:
        env = {
            "MODELWRIGHT_HOME": str(self.folder / name),
            "MODELWRIGHT_STORE_URL": str(self.store),
            "MODELWRIGHT_MODELS": str(self.models),
            "MODELWRIGHT_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{self.proxies[f'postgres-{side}'].port}/postgres",
            "MODELWRIGHT_REDIS_URL": f"redis://127.0.0.1:{self.proxies[f'valkey-{side}'].port}/0",
            "MODELWRIGHT_LEASE_SECONDS": str(self.lease_seconds),
            "MODELWRIGHT_HEARTBEAT_SECONDS": str(self.heartbeat_seconds),
            "MODELWRIGHT_MAX_QUEUED_JOBS": "10000",
            "OMP_NUM_THREADS": "1",
            JOURNAL: str(self.journal.folder),
            STEP_SECONDS: str(self.step_seconds),
        }
        (self.folder / name).mkdir(exist_ok=True)
        return Part(name, command, env, self.folder / f"{name}.log")

    def add_trainer(self) -> Part:
        part = self._part(f"trainer-{len(self.trainers)}", ["-m", "tests.chaos.trainer"], "trainer")
        self.trainers.append(part)
        part.start()
        return part

    def wait_until_ready(self) -> None:
        """The gateway answers, and it sees every trainer."""

        def ready() -> bool:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.client.url}/health/live", timeout=2).status_code == 200:
                    # The name of a trainer holds its pid, so one that was killed counts until its key expires.
                    keys = self.valkey.client.keys("modelwright:workers:trainer:*")
                    seen = {int(m[1]) for k in keys if (m := re.search(r"trainer-(\d+)@", str(k)))}
                    return seen >= {t.pid for t in self.trainers if t.alive}
            return False

        until(ready, READY_SECONDS, f"gateway and trainers; see the logs in {self.folder}")

    def wait_until_done(self, seconds: float) -> None:
        """Every job has ended."""
        until(lambda: self.audit.unfinished() == 0, seconds, "all jobs to end", every=0.25)

    def owner(self, job_id: str) -> Part | None:
        """The trainer that has a child on this job."""
        return next((t for t in self.trainers if any(c.job_id == job_id for c in t.children())), None)

    def wait_for_step(self, job_id: str, step: int, seconds: float = 60.0) -> None:
        """Until the newest attempt has taken `step`, or the job has ended."""
        until(
            lambda: self.journal.step(job_id) >= step or self.audit.job(job_id)[0] not in ("queued", "running"),
            seconds,
            f"step {step} of {job_id}",
            every=0.01,
        )
