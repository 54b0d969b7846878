"""Rows of jobs and their events. What a worker may write to a job it holds is in `leases.py`."""

from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from app.registry.paging import page
from app.registry.tables import JobEventRow, JobRow
from app.registry.webhooks import WebhookRepository

OPEN_STATES = ("queued", "running", "paused")


class JobRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    # --- for the gateway ---

    def add(self, row: JobRow) -> None:
        self.session.add(row)
        self.session.flush()

    def get(self, job_id: str, *, lock: bool = False) -> JobRow | None:
        query = select(JobRow).where(JobRow.id == job_id)
        return self.session.scalars(query.with_for_update() if lock else query).first()

    def page(self, *, after: str | None, limit: int, metadata: dict[str, str] | None) -> tuple[list[JobRow], bool]:
        """Newest first; `metadata` None asks for jobs without any, an empty map for all."""
        query = select(JobRow).where(JobRow.kind == "training")
        if metadata is None:
            query = query.where(JobRow.metadata_.is_(None))
        elif metadata:
            query = query.where(JobRow.metadata_.contains(metadata))
        return page(self.session, query, JobRow, after=after, limit=limit)

    def events(self, job_id: str, *, before: int | None, limit: int) -> tuple[list[JobEventRow], bool]:
        """Newest first, as OpenAI lists them."""
        query = select(JobEventRow).where(JobEventRow.job_id == job_id)
        if before is not None:
            query = query.where(JobEventRow.number < before)
        rows = list(self.session.scalars(query.order_by(JobEventRow.number.desc()).limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    def cancel(self, row: JobRow) -> None:
        """A waiting job ends at once; a running one is told at its worker's next heartbeat."""
        row.cancel_requested = True
        if row.state in ("queued", "paused"):
            row.state, row.phase = "cancelled", None
            row.finished_at = self.session.scalar(select(func.clock_timestamp()))
            if row.kind == "training":
                WebhookRepository(self.session).announce(row.id, "fine_tuning.job.cancelled")

    def pause(self, row: JobRow) -> None:
        """A waiting job rests at once; a running one after its worker's next heartbeat and a checkpoint."""
        if row.state == "queued":
            row.state = "paused"
        elif row.state == "running":
            row.pause_requested, row.phase = True, "pausing"

    def resume(self, row: JobRow) -> None:
        """Back to the queue; a pause that was not carried out yet is forgotten."""
        row.pause_requested = False
        if row.state == "paused":
            row.state, row.rung_at, row.failures = "queued", None, 0

    def unfinished_name(self, name: str) -> JobRow | None:
        """An unfinished job that will publish under `name` (case aside)."""
        return self.session.scalars(
            select(JobRow).where(func.lower(JobRow.model_name) == name.lower(), JobRow.finished_at.is_(None)).limit(1)
        ).first()

    def add_events(self, job_id: str, events: list[dict[str, Any]]) -> None:
        """Each `{level, type, message, data}`."""
        if events:
            self.session.execute(insert(JobEventRow), [{"job_id": job_id, **e} for e in events])
