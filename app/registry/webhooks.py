"""Rows of webhook endpoints and of the outbox. Sends nothing; only the database's clock decides what is due.

A delivery that was taken is leased, not locked: `next_attempt_at` moves ahead and `attempts` rises, and `attempts`
is the fence that voids the result of a sender that woke up too late.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import any_, case, exists, func, insert, literal, select, update
from sqlalchemy.orm import Session, aliased

from app.core.ids import new_id
from app.registry.paging import page
from app.registry.tables import WebhookDeliveryRow, WebhookEndpointRow

LEASE = timedelta(seconds=30)
"""Far above the 5 s that one attempt may take."""
GIVE_UP_AFTER = timedelta(hours=24)


@dataclass(frozen=True)
class Taken:
    """A delivery that is ours to attempt until its lease ends."""

    row: WebhookDeliveryRow
    endpoint: WebhookEndpointRow
    now: datetime


def valid_secrets(endpoint: WebhookEndpointRow, now: datetime) -> list[str]:
    """The secret and, until its time is over, the one before."""
    previous, until = endpoint.previous_secret, endpoint.previous_until
    return [endpoint.secret, *([previous] if previous and until and until > now else [])]


class WebhookRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def now(self) -> datetime:
        found: datetime = self.session.scalars(select(func.clock_timestamp())).one()
        return found

    # --- endpoints ---

    def add(self, row: WebhookEndpointRow) -> None:
        self.session.add(row)
        self.session.flush()

    def get(self, endpoint_id: str, *, lock: bool = False) -> WebhookEndpointRow | None:
        """The endpoint, unless deleted."""
        query = select(WebhookEndpointRow).where(
            WebhookEndpointRow.id == endpoint_id, WebhookEndpointRow.deleted_at.is_(None)
        )
        return self.session.scalars(query.with_for_update() if lock else query).first()

    def page(self, *, after: str | None, limit: int) -> tuple[list[WebhookEndpointRow], bool]:
        query = select(WebhookEndpointRow).where(WebhookEndpointRow.deleted_at.is_(None))
        return page(self.session, query, WebhookEndpointRow, after=after, limit=limit)

    def count(self) -> int:
        query = select(func.count()).where(WebhookEndpointRow.deleted_at.is_(None))
        return self.session.scalars(query).one()

    def delete(self, row: WebhookEndpointRow) -> None:
        """The endpoint, which the caller has locked, and what still waited for it."""
        row.deleted_at = self.now()
        self.session.execute(
            update(WebhookDeliveryRow)
            .where(WebhookDeliveryRow.endpoint_id == row.id, WebhookDeliveryRow.finished_at.is_(None))
            .values(finished_at=row.deleted_at, last_error="the endpoint was deleted")
        )

    # --- the outbox ---

    def announce(self, subject: str, event_type: str) -> None:
        """Put one event about `subject` into the outbox of every endpoint that wants it, in this transaction."""
        wanting = (
            select(WebhookEndpointRow.id, literal(new_id("evt_")), literal(event_type), literal(subject))
            .where(WebhookEndpointRow.deleted_at.is_(None), literal(event_type) == any_(WebhookEndpointRow.event_types))
            .order_by(WebhookEndpointRow.id)
            .with_for_update(read=True)  # a deletion waits, and then finds these rows
        )
        self.session.execute(
            insert(WebhookDeliveryRow).from_select(["endpoint_id", "event_id", "event_type", "subject"], wanting)
        )

    def take(self, busy: Collection[str]) -> Taken | None:
        """Lease the delivery that has been due longest, of an endpoint that is not `busy`.

        An event waits until every earlier one about the same object is done with: receivers see them in order.
        """
        now, row, earlier = func.clock_timestamp(), WebhookDeliveryRow, aliased(WebhookDeliveryRow)
        waits = exists().where(
            earlier.endpoint_id == row.endpoint_id,
            earlier.subject == row.subject,
            earlier.number < row.number,
            earlier.finished_at.is_(None),
        )
        due = (
            select(row.number)
            .where(row.finished_at.is_(None), row.next_attempt_at <= now, row.endpoint_id.not_in(busy), ~waits)
            .order_by(row.next_attempt_at)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        taken = self.session.scalars(
            update(row)
            .where(row.number == due)
            .values(next_attempt_at=now + LEASE, attempts=row.attempts + 1)
            .returning(row)
        ).first()
        if taken is None:
            return None
        endpoint = self.session.get_one(WebhookEndpointRow, taken.endpoint_id)
        return Taken(taken, endpoint, self.now())

    def end(self, taken: Taken, *, delivered: bool, error: str | None) -> None:
        """No further attempt."""
        self.session.execute(
            _ours(taken).values(finished_at=func.clock_timestamp(), delivered=delivered, last_error=error)
        )

    def retry(self, taken: Taken, delay: timedelta, error: str) -> bool:
        """Attempt again after `delay`. False when that would be later than 24 h after the event: given up."""
        again = func.clock_timestamp() + delay
        late = WebhookDeliveryRow.created_at + GIVE_UP_AFTER < again
        given_up = self.session.scalars(
            _ours(taken)
            .values(
                next_attempt_at=again, last_error=error, finished_at=case((late, func.clock_timestamp()), else_=None)
            )
            .returning(WebhookDeliveryRow.finished_at.is_not(None))
        ).first()
        return not given_up


def _ours(taken: Taken) -> Any:
    row = WebhookDeliveryRow
    return (
        update(row)
        .where(row.number == taken.row.number, row.attempts == taken.row.attempts, row.finished_at.is_(None))
        .execution_options(synchronize_session=False)
    )
