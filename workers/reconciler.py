"""Rings for jobs whose bell was lost and settles those whose worker is gone for good. One pass; `chores.py` repeats it.

One leader at a time, by an advisory lock that its transaction holds; a job that is rung twice is claimed once.
"""

from app.core.logging import get_logger
from app.core.queue import Bell
from app.registry.leases import LeaseRepository
from workers.context import WorkerContext

log = get_logger(__name__)

# A waiting job is rung again after this long: with every trainer busy, a bell a second would only fill the queue.
RING_AGAIN_SECONDS = 15.0


def reconcile_once(context: WorkerContext, bell: Bell) -> list[str]:
    """Ring and settle what needs it; returns the ids rung, none when another trainer leads."""
    with context.database.unit_of_work() as session:
        leases = LeaseRepository(session)
        if not leases.lead():
            return []
        settled = leases.end_lost()
        rung = leases.to_ring(RING_AGAIN_SECONDS)
    for job_id in settled:
        log.warning("job_settled_without_worker", job_id=job_id)
    for job_id in rung:
        bell.ring_now(job_id)
    return rung
