"""Spares callers a wait that the last one has just made in vain. Pure: no server, the clock is injected."""

from collections.abc import Callable
from threading import Lock
from time import monotonic

REST = 1.0
"""Seconds between two callers who may try a silent server. Threads are few (40 a gateway): were each to wait for
itself, the callers behind them would wait twice."""


class Breaker:
    """Open after silence: then one caller each `REST` seconds gets through, until one is answered."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._next_try: float | None = None  # None: closed, everybody may pass

    def admits(self) -> bool:
        """Whether this caller may ask the server; who does must `record` what came of it."""
        with self._lock:
            if self._next_try is None:
                return True
            if self._clock() < self._next_try:
                return False
            self._next_try = self._clock() + REST
            return True

    def record(self, *, answered: bool) -> None:
        with self._lock:
            self._next_try = None if answered else self._clock() + REST
