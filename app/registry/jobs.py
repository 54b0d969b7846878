"""Rows of jobs and their events: the claim, the lease and the fence.

Only the database's clock decides about leases. Every write of a worker carries its fence; a write that matches no
row means that the job went to somebody else, and the worker must stop.
"""

from typing import Any

from sqlalchemy import func, insert, or_, select, text, update
from sqlalchemy.orm import Session

from app.registry.paging import page
from app.registry.tables import JobEventRow, JobRow

OPEN_STATES = ("queued", "running")


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
        if row.state == "queued":
            row.state, row.phase = "cancelled", None
            row.finished_at = self.session.scalar(select(func.clock_timestamp()))

    def unfinished_name(self, name: str) -> JobRow | None:
        """An unfinished job that will publish under `name` (case aside)."""
        return self.session.scalars(
            select(JobRow).where(func.lower(JobRow.model_name) == name.lower(), JobRow.finished_at.is_(None))
        ).first()

    # --- for the workers ---

    def claim(self, job_id: str, owner: str, lease_seconds: float) -> JobRow | None:
        """Take the job if nobody has it; None when there is nothing to do. Ten copies of a message start it once."""
        now = func.clock_timestamp()
        return self.session.scalars(
            update(JobRow)
            .where(
                JobRow.id == job_id,
                or_(JobRow.state == "queued", (JobRow.state == "running") & (JobRow.lease_until < now)),
                JobRow.cancel_requested.is_(False),
                JobRow.attempt < JobRow.max_attempts,
            )
            .values(
                state="running",
                phase="validating_files",
                attempt=JobRow.attempt + 1,
                fence=JobRow.fence + 1,
                owner=owner,
                lease_until=now + _seconds(lease_seconds),
                started_at=func.coalesce(JobRow.started_at, now),
            )
            .returning(JobRow)
        ).first()

    def beat(self, job_id: str, fence: int, lease_seconds: float, values: dict[str, Any]) -> bool | None:
        """Renew the lease and write progress. Returns whether a cancel waits; None when the fence moved on."""
        return self.session.scalars(
            self._fenced(job_id, fence)
            .values(lease_until=func.clock_timestamp() + _seconds(lease_seconds), **values)
            .returning(JobRow.cancel_requested)
        ).first()

    def end(self, job_id: str, fence: int, state: str, **values: Any) -> bool:
        """Finish the job; False when the fence moved on and nothing was written."""
        done = self.session.scalars(
            self._fenced(job_id, fence)
            .values(state=state, phase=None, finished_at=func.clock_timestamp(), lease_until=None, **values)
            .returning(JobRow.id)
        ).first()
        return done is not None

    def hand_back(self, job_id: str, fence: int, *, counted: bool) -> bool:
        """Put the job back in the queue; unless `counted`, as when its worker shuts down, the attempt is free."""
        done = self.session.scalars(
            self._fenced(job_id, fence)
            .values(
                state="queued",
                phase=None,
                owner=None,
                lease_until=None,
                rung_at=None,
                attempt=JobRow.attempt - (0 if counted else 1),
            )
            .returning(JobRow.id)
        ).first()
        return done is not None

    def add_events(self, job_id: str, events: list[dict[str, Any]]) -> None:
        """Each `{level, type, message, data}`."""
        if events:
            self.session.execute(insert(JobEventRow), [{"job_id": job_id, **e} for e in events])

    # --- for the reconciler ---

    def to_ring(self, again_after_seconds: float, limit: int = 100) -> list[str]:
        """Jobs whose bell should ring (again): waiting ones, and running ones whose lease ran out."""
        now = func.clock_timestamp()
        quiet = func.coalesce(JobRow.rung_at, text("'-infinity'::timestamptz")) < now - _seconds(again_after_seconds)
        chosen = (
            select(JobRow.id)
            .where(or_(JobRow.state == "queued", (JobRow.state == "running") & (JobRow.lease_until < now)), quiet)
            .where(JobRow.cancel_requested.is_(False), JobRow.attempt < JobRow.max_attempts)
            .with_for_update(skip_locked=True)
            .limit(limit)
            .scalar_subquery()
        )
        return list(
            self.session.scalars(update(JobRow).where(JobRow.id.in_(chosen)).values(rung_at=now).returning(JobRow.id))
        )

    def end_lost(self) -> list[str]:
        """End jobs whose worker is gone and that may not run again: cancelled, or out of attempts."""
        now = func.clock_timestamp()
        gone = (JobRow.state == "running") & (JobRow.lease_until < now)
        ended = self.session.scalars(
            update(JobRow)
            .where(gone, JobRow.cancel_requested)
            .values(state="cancelled", phase=None, finished_at=now, fence=JobRow.fence + 1)
            .returning(JobRow.id)
        ).all()
        lost = self.session.scalars(
            update(JobRow)
            .where(gone, JobRow.cancel_requested.is_(False), JobRow.attempt >= JobRow.max_attempts)
            .values(
                state="failed",
                phase=None,
                finished_at=now,
                fence=JobRow.fence + 1,
                error={
                    "code": "worker_lost",
                    "message": "the worker was lost on every attempt: see its logs, then create the job again",
                    "param": None,
                },
            )
            .returning(JobRow.id)
        ).all()
        return [*ended, *lost]

    def _fenced(self, job_id: str, fence: int) -> Any:
        return update(JobRow).where(JobRow.id == job_id, JobRow.fence == fence, JobRow.state == "running")


def _seconds(value: float) -> Any:
    return func.make_interval(0, 0, 0, 0, 0, 0, value)
