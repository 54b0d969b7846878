"""Keeps what is wanted in memory before anybody asks for it: versions under an alias, and those pinned by hand.

A thread of its own, because a load takes seconds and answers nobody. Knows no database: `desired` is injected. What
does not fit the budget is left to be loaded on demand, so that pins never push one another out in a circle.
"""

from collections.abc import Callable
from threading import Event, Thread

from app.contracts.placement import Desired
from app.core.errors import ModelwrightError
from app.core.logging import get_logger
from workers.inference.sessions import ModelLoadFailed, Sessions

POLL_SECONDS = 2.0

log = get_logger(__name__)


class Warm:
    """`start` returns at once, `stop` when the load in hand is done."""

    def __init__(self, sessions: Sessions, desired: Callable[[], Desired]) -> None:
        self._sessions, self._desired = sessions, desired
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="predict-warm", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                self.once()
            except ModelwrightError as exc:
                log.warning("warm_failed", reason=exc.message)
            except Exception:
                log.exception("warm_failed")
            if self._stopping.wait(POLL_SECONDS):
                return

    def once(self) -> None:
        """Unload what is not wanted, load what is and fits; pass on how large batches may be."""
        wanted = self._desired()
        self._sessions.max_batch_size = wanted.max_batch_size
        for version_id in wanted.unloaded:
            if self._sessions.unload(version_id):
                log.info("version_unloaded", version_id=version_id, asked=True)
        for version_id in sorted(self._sessions.pin(wanted.pinned)):
            if self._stopping.is_set() or not self._sessions.room():
                return
            try:
                self._sessions.get(version_id)
            except ModelLoadFailed:
                continue  # logged there; its own requests will hear why
