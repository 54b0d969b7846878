"""Rings the bell: a best-effort Celery message that carries a job id. The row is already committed.

The publisher never blocks a request: it runs in a thread of its own with short socket timeouts (a frozen broker
blocked the stock client for over 40 s), and what it fails to say the reconciler says again.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any

from celery import Celery

from app.contracts.queues import RUN_JOB, TRAINING_QUEUE
from app.core.logging import get_logger

log = get_logger(__name__)

MAX_WAITING = 100
"""Rings that wait for the thread: a frozen broker takes 2 s for each, so more would only be late."""

BROKER_OPTIONS: dict[str, Any] = {
    "socket_timeout": 5,  # above the 1 s that the broker's own blocking pop waits
    "socket_connect_timeout": 1,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


class Bell:
    """Sends doorbell messages."""

    def __init__(self, redis_url: str) -> None:
        self._celery = Celery(broker=redis_url, set_as_current=False)
        self._celery.conf.update(
            broker_transport_options={**BROKER_OPTIONS, "socket_timeout": 2},
            task_publish_retry=False,
            task_ignore_result=True,
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bell")
        self._room = BoundedSemaphore(MAX_WAITING)

    def ring(self, job_id: str) -> None:
        """Return at once; the message goes out from a thread, or not at all."""
        if self._room.acquire(blocking=False):
            self._pool.submit(self.ring_now, job_id).add_done_callback(lambda _: self._room.release())
        else:
            log.warning("bell_not_rung", job_id=job_id, reason=f"{MAX_WAITING} wait")

    def ring_now(self, job_id: str) -> bool:
        """Send and say whether it was taken."""
        try:
            self._celery.send_task(RUN_JOB, args=[job_id], queue=TRAINING_QUEUE, retry=False)
        except Exception as exc:  # any failure means the same: the reconciler rings again
            log.warning("bell_not_rung", job_id=job_id, reason=type(exc).__name__)
            return False
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._celery.close()
