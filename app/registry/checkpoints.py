"""Rows of checkpoints. A row stands for a checkpoint that was verified; the store may hold others."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.ids import new_id
from app.registry.exports import stands
from app.registry.paging import page
from app.registry.tables import CheckpointRow, JobRow


class CheckpointRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, row: CheckpointRow) -> None:
        self.session.add(row)
        self.session.flush()

    def get(self, checkpoint_id: str, *, keep: bool = False) -> CheckpointRow | None:
        """The checkpoint, unless deleted; with `keep` it stays until this transaction ends."""
        query = select(CheckpointRow).where(CheckpointRow.id == checkpoint_id, CheckpointRow.deleted_at.is_(None))
        return self.session.scalars(query.with_for_update(read=True) if keep else query).first()

    def by_ft_id(self, ft_id: str, *, lock: bool = False) -> CheckpointRow | None:
        query = select(CheckpointRow).where(CheckpointRow.ft_id == ft_id, CheckpointRow.deleted_at.is_(None))
        return self.session.scalars(query.with_for_update() if lock else query).first()

    def of(self, job_id: str) -> list[CheckpointRow]:
        """The job's, newest state first."""
        query = select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.deleted_at.is_(None))
        return list(self.session.scalars(query.order_by(CheckpointRow.step.desc(), CheckpointRow.fence.desc())))

    def keys(self, job_id: str) -> set[str]:
        """Where the job's checkpoints lie or lay, deleted ones included."""
        return set(self.session.scalars(select(CheckpointRow.key).where(CheckpointRow.job_id == job_id)))

    def page(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[CheckpointRow], bool]:
        query = select(CheckpointRow).where(CheckpointRow.job_id == job_id, CheckpointRow.deleted_at.is_(None))
        return page(self.session, query, CheckpointRow, after=after, limit=limit)

    def delete(self, row: CheckpointRow) -> None:
        row.deleted_at = self.session.scalar(select(func.clock_timestamp()))

    def unneeded(self, rows: Collection[CheckpointRow]) -> list[CheckpointRow]:
        """Those of `rows` that no unfinished job starts from or exports; none will until this transaction ends."""
        ids = [row.id for row in rows]
        self.session.execute(select(CheckpointRow.id).where(CheckpointRow.id.in_(ids)).with_for_update())
        query = select(JobRow.from_checkpoint).where(JobRow.from_checkpoint.in_(ids), JobRow.finished_at.is_(None))
        needed = set(self.session.scalars(query))
        return [row for row in rows if row.id not in needed]

    def export(self, row: CheckpointRow, source: JobRow, *, again_after: timedelta = timedelta(0)) -> JobRow:
        """The job that makes `row` servable: the one under way, done, or failed less than `again_after` ago; else new.

        The caller holds the row's lock, so there is one export at a time.
        """
        made = self.session.get(JobRow, row.export_job) if row.export_job else None
        if made is not None and stands(self.session, made, again_after):
            return made
        job = JobRow(
            id=new_id("exjob-"),
            kind="export",
            parent_id=source.id,
            from_checkpoint=row.id,
            max_attempts=source.max_attempts,
            **{name: getattr(source, name) for name in _COPIED},
        )
        self.session.add(job)
        self.session.flush()
        row.export_job = job.id
        return job

    def source_of(self, row: CheckpointRow) -> JobRow:
        """The job that made it."""
        query: Any = select(JobRow).where(JobRow.id == row.job_id)
        found: JobRow = self.session.scalars(query).one()
        return found


_COPIED = (
    "key_id",
    "task",
    "base_model",
    "base_version",
    "model_name",
    "suffix",
    "seed",
    "training_file",
    "validation_file",
    "test_file",
    "request",
    "resolved",
)
"""An export prepares exactly as its training did."""
