"""Who works on which job: the claim, the lease and the fence. For workers and the reconciler.

Only the database's clock decides about leases. Every write of a worker carries its fence; a write that matches no
row means that the job went to somebody else, and the worker must stop.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select, text, update
from sqlalchemy.orm import Session

from app.registry.jobs import JobRepository
from app.registry.tables import ApiKeyRow, JobRow
from app.registry.webhooks import WebhookRepository

# Any number that no other lock uses: claims are made one after the other, so that shares and quotas are exact.
_CLAIM_LOCK, _LEADER_LOCK = 0x6D77_0002, 0x6D77_0003
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Orders:
    """What a heartbeat brings back."""

    cancel: bool
    pause: bool


class LeaseRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    # --- for the worker that runs a job ---

    def claim_next(self, owner: str, lease_seconds: float, *, kind: str, max_trainings: int) -> JobRow | None:
        """Take the job of this kind whose turn it is; None when none waits. Ten copies of a message start a job once.

        The key with the fewest running jobs goes first, then the one that was served longest ago, then the oldest
        job; a key with `max_trainings` running ones (its own quota, else the argument) waits.
        """
        self.session.execute(select(func.pg_advisory_xact_lock(_CLAIM_LOCK)))
        now = func.clock_timestamp()
        while chosen := self._next(now, kind, max_trainings):
            claimed = self.session.scalars(
                update(JobRow)
                # Once more: a cancel or a pause may have been committed since, and while this waited for its row.
                .where(JobRow.id == chosen, _claimable(now))
                .values(
                    state="running",
                    phase="validating_files",
                    attempt=JobRow.attempt + 1,
                    failures=JobRow.failures + 1,
                    fence=JobRow.fence + 1,
                    owner=owner,
                    lease_until=now + seconds(lease_seconds),
                    claimed_at=now,
                    run_after=None,
                    started_at=func.coalesce(JobRow.started_at, now),
                )
                .returning(JobRow)
            ).first()
            if claimed is not None:
                return claimed
        return None

    def _next(self, now: Any, kind: str, max_trainings: int) -> str | None:
        """A few small grouped queries: one over all rows took a look at every finished job for each waiting one."""
        groups = self.session.execute(
            select(JobRow.key_id, func.min(JobRow.created_at))
            .where(_claimable(now), JobRow.kind == kind)
            .group_by(JobRow.key_id)
        ).all()
        if not groups:
            return None
        keys = {key for key, _ in groups}
        alive = and_(JobRow.state == "running", JobRow.lease_until >= now, JobRow.kind == kind)
        running = self._by_key(select(JobRow.key_id, func.count()).where(alive).group_by(JobRow.key_id))
        of_keys = JobRow.key_id.in_(keys - {None})
        served = self._by_key(select(JobRow.key_id, func.max(JobRow.claimed_at)).where(of_keys).group_by(JobRow.key_id))
        quotas = self._by_key(select(ApiKeyRow.id, ApiKeyRow.max_trainings).where(ApiKeyRow.id.in_(keys - {None})))
        turns = [
            (running.get(key, 0), served.get(key) or _NEVER, oldest, key)
            for key, oldest in groups
            if running.get(key, 0) < (quotas.get(key) or max_trainings)
        ]
        if not turns:
            return None
        *_, key = min(turns, key=lambda turn: turn[:3])
        return self.session.scalars(
            select(JobRow.id)
            .where(_claimable(now), JobRow.kind == kind, JobRow.key_id.is_not_distinct_from(key))
            .order_by(JobRow.created_at, JobRow.id)
            .limit(1)
        ).first()

    def _by_key(self, query: Any) -> dict[str | None, Any]:
        return {key: value for key, value in self.session.execute(query).all()}  # noqa: C416  (rows are no pairs)

    def beat(self, job_id: str, fence: int, lease_seconds: float, values: dict[str, Any]) -> Orders | None:
        """Renew the lease and write progress; None when the fence moved on."""
        found = self.session.execute(
            self._fenced(job_id, fence)
            .values(lease_until=func.clock_timestamp() + seconds(lease_seconds), **values)
            .returning(JobRow.cancel_requested, JobRow.pause_requested)
        ).first()
        return Orders(*found) if found else None

    def end(self, job_id: str, fence: int, state: str, **values: Any) -> bool:
        """Finish the job; False when the fence moved on and nothing was written."""
        kind = self.session.scalars(
            self._fenced(job_id, fence)
            .values(state=state, phase=None, finished_at=func.clock_timestamp(), lease_until=None, **values)
            .returning(JobRow.kind)
        ).first()
        if kind == "training":
            WebhookRepository(self.session).announce(job_id, f"fine_tuning.job.{state}")
        return kind is not None

    def hand_back(
        self, job_id: str, fence: int, *, counted: bool, after_seconds: float = 0.0, halve_batch: bool = False
    ) -> str | None:
        """Put the job back in the queue, or to rest when a pause waits; the state it has now, None past the fence.

        Unless `counted`, as when its worker shuts down, the run does not count as one that failed.
        """
        return self.session.scalars(
            self._fenced(job_id, fence)
            .values(
                state=case((JobRow.pause_requested, "paused"), else_="queued"),
                phase=None,
                pause_requested=False,
                owner=None,
                lease_until=None,
                rung_at=None,
                run_after=func.clock_timestamp() + seconds(after_seconds) if after_seconds else None,
                failures=func.greatest(0, JobRow.failures - (0 if counted else 1)),
                batch_halvings=JobRow.batch_halvings + (1 if halve_batch else 0),
            )
            .returning(JobRow.state)
        ).first()

    def set(self, job_id: str, fence: int, **values: Any) -> bool:
        """Write columns under the fence; False past it."""
        done = self.session.scalars(self._fenced(job_id, fence).values(**values).returning(JobRow.id)).first()
        return done is not None

    def holds(self, job_id: str, fence: int) -> bool:
        """Whether the fence still stands; until this transaction ends, it does."""
        held = select(JobRow.id).where(JobRow.id == job_id, JobRow.fence == fence, JobRow.state == "running")
        return self.session.scalars(held.with_for_update()).first() is not None

    # --- for the reconciler ---

    def lead(self) -> bool:
        """Whether this transaction is the only one that reconciles now."""
        return bool(self.session.scalar(select(func.pg_try_advisory_xact_lock(_LEADER_LOCK))))

    def to_ring(self, again_after_seconds: float, limit: int = 10) -> list[str]:
        """Jobs whose bell should ring (again): waiting ones, and running ones whose lease ran out.

        At most `limit` of them, though all count as rung: a trainer that wakes runs everything that waits, and a ring
        for each of 1,000 waiting jobs every 15 s would fill the broker while all trainers are busy.
        """
        now = func.clock_timestamp()
        quiet = func.coalesce(JobRow.rung_at, text("'-infinity'::timestamptz")) < now - seconds(again_after_seconds)
        # A lease that ran out since the last ring is news, however young that ring is.
        lost = and_(JobRow.state == "running", JobRow.rung_at < JobRow.lease_until)
        waits = and_(_claimable(now), JobRow.kind == "training", or_(quiet, lost))
        chosen = select(JobRow.id).where(waits).with_for_update(skip_locked=True)
        rung = update(JobRow).where(JobRow.id.in_(chosen.scalar_subquery())).values(rung_at=now).returning(JobRow.id)
        return list(self.session.scalars(rung))[:limit]

    def end_lost(self) -> list[str]:
        """Settle jobs whose worker is gone and that may not run again: cancelled, paused, or out of attempts."""
        gone = and_(JobRow.state == "running", JobRow.lease_until < func.clock_timestamp())
        spent = and_(gone, JobRow.failures >= JobRow.max_attempts)
        error = {
            "code": "worker_lost",
            "message": "the worker was lost on every attempt: see the trainers' logs, then create the job again",
            "param": None,
        }
        return [
            *self._settle(and_(gone, JobRow.cancel_requested), "cancelled"),
            *self._settle(and_(gone, JobRow.pause_requested), "paused"),
            *self._settle(spent, "failed", error=error),
        ]

    def _settle(self, condition: ColumnElement[bool], state: str, **values: Any) -> list[str]:
        ends = {} if state == "paused" else {"finished_at": func.clock_timestamp()}
        settled = self.session.execute(
            update(JobRow)
            .where(condition)
            .values(
                state=state,
                phase=None,
                pause_requested=False,
                owner=None,
                lease_until=None,
                fence=JobRow.fence + 1,
                **ends,
                **values,
            )
            .returning(JobRow.id, JobRow.kind)
        ).all()
        for job_id, kind in settled:
            message = f"The worker is gone; the job is {state}"
            JobRepository(self.session).add_events(
                job_id, [{"level": "warn", "type": "message", "message": message, "data": None}]
            )
            if ends and kind == "training":
                WebhookRepository(self.session).announce(job_id, f"fine_tuning.job.{state}")
        return [job_id for job_id, _ in settled]

    def _fenced(self, job_id: str, fence: int) -> Any:
        return update(JobRow).where(JobRow.id == job_id, JobRow.fence == fence, JobRow.state == "running")


def _claimable(now: Any) -> ColumnElement[bool]:
    waiting = and_(JobRow.state == "queued", or_(JobRow.run_after.is_(None), JobRow.run_after < now))
    lost = and_(JobRow.state == "running", JobRow.lease_until < now)
    return and_(
        or_(waiting, lost),
        JobRow.cancel_requested.is_(False),
        JobRow.pause_requested.is_(False),
        JobRow.failures < JobRow.max_attempts,
    )


def seconds(value: float) -> Any:
    """An interval for Postgres."""
    return func.make_interval(0, 0, 0, 0, 0, 0, value)
