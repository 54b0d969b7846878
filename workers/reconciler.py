"""Rings for jobs whose bell was lost and ends those whose worker is gone for good. One thread in each trainer.

Any number may run: rows are taken with SKIP LOCKED, and a job that is rung twice is claimed once.
"""

from collections.abc import Callable
from threading import Event, Thread

import redis

from app.contracts.queues import WORKERS
from app.core.errors import ModelwrightError
from app.core.logging import get_logger
from app.core.queue import Bell
from app.registry.jobs import JobRepository
from workers.context import WorkerContext

log = get_logger(__name__)

EVERY_SECONDS = 2.0
# A waiting job is rung again after this long: with every trainer busy, a bell a second would only fill the queue.
RING_AGAIN_SECONDS = 15.0


def reconcile_once(context: WorkerContext, bell: Bell) -> list[str]:
    """Ring and end what needs it; returns the ids rung."""
    with context.database.unit_of_work() as session:
        jobs = JobRepository(session)
        ended = jobs.end_lost()
        rung = jobs.to_ring(RING_AGAIN_SECONDS)
    for job_id in ended:
        log.warning("job_ended_without_worker", job_id=job_id)
    for job_id in rung:
        bell.ring_now(job_id)
    return rung


def start(context: WorkerContext, name: str) -> Callable[[], None]:
    """Run in a thread until the returned function is called."""
    stop, bell = Event(), Bell(context.redis_url)
    client = redis.Redis.from_url(context.redis_url, socket_timeout=2, socket_connect_timeout=1)

    def loop() -> None:
        while not stop.wait(EVERY_SECONDS):
            try:
                client.set(f"{WORKERS}:trainer:{name}", "1", ex=int(EVERY_SECONDS * 3))
                reconcile_once(context, bell)
            except (ModelwrightError, redis.RedisError) as exc:
                log.warning("reconcile_failed", reason=str(exc))

    thread = Thread(target=loop, name="reconciler", daemon=True)
    thread.start()

    def stop_all() -> None:
        stop.set()
        thread.join(timeout=5)
        bell.close()

    return stop_all
