"""Several gateway processes on one port: a parent that holds the listening socket, replaces who dies, stops all alike.

The processes inherit the socket instead of binding their own (SO_REUSEPORT): what waits at the port when one of them
dies is taken by another. The parent serves nothing and knows nothing of HTTP. uvicorn's own supervisor does not do: its
processes run a plain `Server`, outlive a parent that is killed, and are all told SIGTERM only once.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from types import FrameType

from app.core.logging import get_logger

_LOOK_SECONDS = 0.1
_START_SECONDS = 10.0
"""A process that ends itself this soon after the first start would do so again: then nothing is served at all."""
_STEADY_SECONDS = 60.0
"""One that lived longer is replaced at once, the others after 0, 1, 2, 4 ... 30 s."""
_BACKOFF_LIMIT = 30.0

log = get_logger(__name__)


@dataclass
class _Place:
    """One of the processes, and those that take its place."""

    process: "subprocess.Popen[bytes] | None" = None
    delay: float = 0.0
    start_at: float = field(default_factory=time.monotonic)


class GatewayProcesses:
    """`count` processes that serve `listener`, which is theirs from now on."""

    def __init__(self, listener: socket.socket, count: int) -> None:
        self._listener, self._places = listener, [_Place() for _ in range(count)]
        self._orders = 0
        """Signals to stop so far: the first drains, the second stops at once."""

    def run(self) -> int:
        """Until told to stop and all have ended; the exit code."""
        for sig in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sig, self._order)
        # Each process counts in a file of its own there; whoever is asked for /metrics adds them up.
        with TemporaryDirectory(prefix="modelwright-metrics-") as metrics:
            failed = self._serve(os.environ | {"PROMETHEUS_MULTIPROC_DIR": metrics})
            self._listener.close()  # the processes hold it, and the last of them shuts it
            self._stop()
        return failed

    def _order(self, _sig: int, _frame: FrameType | None) -> None:
        self._orders += 1

    def _serve(self, env: dict[str, str]) -> int:
        """Keep every place taken until an order; above 0: the exit code of a process that cannot start."""
        began = time.monotonic()
        while not self._orders:
            for place in self._places:
                now = time.monotonic()
                if place.process is None and now >= place.start_at:
                    self._start(place, env)
                elif place.process is not None and (code := place.process.poll()) is not None:
                    if code > 0 and now < began + _START_SECONDS:
                        self._orders = 1
                        return code
                    self._plan(place, now, code)
            time.sleep(_LOOK_SECONDS)
        return 0

    def _start(self, place: _Place, env: dict[str, str]) -> None:
        fd, place.start_at = self._listener.fileno(), time.monotonic()
        place.process = subprocess.Popen(
            [sys.executable, "-m", "app", "gateway", "--listener", str(fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=(fd,),
            start_new_session=True,  # ctrl-C reaches the parent alone
            env=env,
        )
        log.info("gateway_process_started", pid=place.process.pid)

    @staticmethod
    def _plan(place: _Place, now: float, code: int) -> None:
        """The process of this place has ended: its next start."""
        assert place.process is not None
        if now > place.start_at + _STEADY_SECONDS:
            place.delay = 0.0
        log.error("gateway_process_ended", pid=place.process.pid, code=code, start_in_seconds=place.delay)
        place.process, place.start_at = None, now + place.delay
        place.delay = min(max(1.0, place.delay * 2), _BACKOFF_LIMIT)

    def _stop(self) -> None:
        """Pass every order on until nobody is left."""
        told = 0
        while living := self._living():
            if told < self._orders:
                told += 1
                for process in living:
                    process.send_signal(signal.SIGINT)
            time.sleep(_LOOK_SECONDS)

    def _living(self) -> "list[subprocess.Popen[bytes]]":
        return [p.process for p in self._places if p.process is not None and p.process.poll() is None]
