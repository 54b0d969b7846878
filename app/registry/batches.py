"""Rows of batches: made, listed, cancelled, and held by the gateway that runs them. Knows no line and no byte.

As with jobs (`leases.py`), only the database's clock decides about leases and windows, and every write of a runner
carries its fence: one that matches no row means that another gateway has the batch.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, func, or_, select, text, update
from sqlalchemy.orm import Session

from app.contracts.batches import OPEN_STATUSES
from app.registry.leases import seconds
from app.registry.paging import page
from app.registry.tables import BatchRow
from app.registry.webhooks import WebhookRepository

_NOW = func.clock_timestamp()
_WINDOW = text("interval '24 hours'")


@dataclass(frozen=True)
class Stand:
    """What a heartbeat brings back."""

    status: str
    expired: bool
    """The completion window is over."""


class BatchRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    # --- for the routes ---

    def add(self, row: BatchRow) -> BatchRow:
        """The row with its times, which the database sets."""
        row.expires_at = _NOW + _WINDOW
        self.session.add(row)
        self.session.flush()
        return row

    def get(self, batch_id: str, *, lock: bool = False) -> BatchRow | None:
        query = select(BatchRow).where(BatchRow.id == batch_id)
        return self.session.scalars(query.with_for_update() if lock else query).first()

    def page(self, *, after: str | None, limit: int) -> tuple[list[BatchRow], bool]:
        return page(self.session, select(BatchRow), BatchRow, after=after, limit=limit)

    def cancel(self, row: BatchRow) -> None:
        """Its runner is told at the next heartbeat; one that is being finalized is done already."""
        if row.status in ("validating", "in_progress"):
            row.status = "cancelling"
            row.cancelling_at = self.session.scalars(select(_NOW)).one()

    # --- for the gateway that runs one ---

    def claim(self, owner: str, lease_seconds: float) -> BatchRow | None:
        """Take the oldest unfinished batch that no gateway holds; None when there is none."""
        free = or_(BatchRow.lease_until.is_(None), BatchRow.lease_until < _NOW)
        chosen = (
            select(BatchRow.id)
            .where(BatchRow.status.in_(OPEN_STATUSES), free)
            .order_by(BatchRow.created_at, BatchRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        return self.session.scalars(
            update(BatchRow)
            .where(BatchRow.id == chosen)
            .values(owner=owner, fence=BatchRow.fence + 1, lease_until=_NOW + seconds(lease_seconds))
            .returning(BatchRow)
        ).first()

    def beat(self, batch_id: str, fence: int, lease_seconds: float) -> Stand | None:
        """Renew the lease; None when the fence moved on."""
        found = self.session.execute(
            _held(batch_id, fence)
            .values(lease_until=_NOW + seconds(lease_seconds))
            .returning(BatchRow.status, BatchRow.expires_at < _NOW)
        ).first()
        return Stand(*found) if found else None

    def begin(self, batch_id: str, fence: int, total: int) -> bool:
        """The input is sound and has `total` lines; a cancel that came meanwhile stays. False past the fence."""
        status = case((BatchRow.status == "validating", "in_progress"), else_=BatchRow.status)
        return self._set(batch_id, fence, status=status, total=total, in_progress_at=_NOW)

    def advance(self, batch_id: str, fence: int, first: int, *, completed: int, failed: int) -> bool:
        """The lines from `first` on are answered and stored. False past the fence; true also when sent again."""
        done = first + completed + failed
        counted = self.session.scalars(
            _held(batch_id, fence)
            .where(BatchRow.done == first)
            .values(done=done, completed=BatchRow.completed + completed, failed=BatchRow.failed + failed)
            .returning(BatchRow.id)
        ).first()
        if counted is not None:
            return True
        before = select(BatchRow.id).where(BatchRow.id == batch_id, BatchRow.fence == fence, BatchRow.done == done)
        return self.session.scalars(before).first() is not None

    def finalize(self, batch_id: str, fence: int) -> bool:
        """Every line is answered; from here on nothing cancels it. False past the fence."""
        return self._set(batch_id, fence, status="finalizing", finalizing_at=_NOW)

    def end(self, batch_id: str, fence: int, status: str, **values: Any) -> bool:
        """Finish it and say so to webhooks; False when the fence moved on and nothing was written."""
        values = {"status": status, f"{status}_at": _NOW, "owner": None, "lease_until": None, **values}
        ended = self._set(batch_id, fence, **values)
        if ended:
            WebhookRepository(self.session).announce(batch_id, f"batch.{status}")
        return ended

    def hand_back(self, batch_id: str, fence: int) -> None:
        """Let another gateway take it at once; a heartbeat that is still under way finds nothing to renew."""
        self._set(batch_id, fence, fence=fence + 1, owner=None, lease_until=None)

    def _set(self, batch_id: str, held: int, **values: Any) -> bool:
        found = self.session.scalars(_held(batch_id, held).values(**values).returning(BatchRow.id)).first()
        return found is not None


def _held(batch_id: str, fence: int) -> Any:
    return update(BatchRow).where(BatchRow.id == batch_id, BatchRow.fence == fence, BatchRow.status.in_(OPEN_STATUSES))
