"""Delivers the outbox. Any number of workers may: rows are leased, and what a lost worker had taken is due again.

Delivery is at least once. A receiver knows a repetition by its `webhook-id`.
"""

import random
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from time import monotonic

from app.core import outbound
from app.core.addresses import Reach
from app.core.errors import InvalidRequest
from app.core.logging import get_logger
from app.core.webhook_signing import event_body, signed_headers
from app.registry.webhooks import Taken, WebhookRepository, valid_secrets
from workers.context import WorkerContext

log = get_logger(__name__)

PARALLEL = 8
# Past this nothing more is taken, so that a call ends (after one more attempt's 5 s) however much waits.
TAKING_SECONDS = 5.0
RETRY_SECONDS = (5, 30, 120, 600, 1800, 3600, 7200, 14_400)
"""After the n-th failure; the last one repeats. A fifth is added or taken at random, so that receivers that come back
are not met by all at once."""
_GONE = 410


def deliver_once(context: WorkerContext) -> int:
    """Attempt what is due and return the number of attempts.

    One at a time for each endpoint: a receiver that hangs holds one of the eight places and delays nobody else.
    """
    reach, count, end = Reach(context.settings.webhook_allow), 0, monotonic() + TAKING_SECONDS
    running: dict[Future[int | str], Taken] = {}
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="webhook") as pool:
        while True:
            while len(running) < PARALLEL and monotonic() < end:
                with context.database.unit_of_work() as session:
                    taken = WebhookRepository(session).take({t.endpoint.id for t in running.values()})
                if taken is None:
                    break
                running[pool.submit(_send, taken, reach)] = taken
            if not running:
                return count
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                _record(context, running.pop(done), done.result())
                count += 1


def _send(taken: Taken, reach: Reach) -> int | str:
    """The receiver's status, or why there is none. Outside any transaction."""
    row = taken.row
    body = event_body(row.event_id, row.event_type, row.subject, row.created_at)
    headers = signed_headers(row.event_id, body, valid_secrets(taken.endpoint, taken.now), taken.now)
    try:
        return outbound.post(taken.endpoint.url, body, headers, reach)
    except InvalidRequest as exc:
        return exc.message


def _record(context: WorkerContext, taken: Taken, outcome: int | str) -> None:
    delivered = isinstance(outcome, int) and 200 <= outcome < 300
    error = f"it answered {outcome}" if isinstance(outcome, int) else outcome
    again = False
    with context.database.unit_of_work() as session:
        webhooks = WebhookRepository(session)
        if delivered or outcome == _GONE:
            webhooks.end(taken, delivered=delivered, error=None if delivered else error)
        else:
            again = webhooks.retry(taken, _delay(taken.row.attempts), error)
    # Never the URL: it may carry a token.
    row = taken.row
    said = log.bind(endpoint_id=row.endpoint_id, event_id=row.event_id, subject=row.subject, attempts=row.attempts)
    if delivered:
        said.info("webhook_delivered")
    elif again:
        said.info("webhook_failed", reason=error)
    else:
        said.warning("webhook_given_up", reason=error)


def _delay(attempts: int) -> timedelta:
    return timedelta(seconds=RETRY_SECONDS[min(attempts, len(RETRY_SECONDS)) - 1] * random.uniform(0.8, 1.2))  # noqa: S311
