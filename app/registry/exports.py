"""Base models that answer by themselves: the version that one was exported to, and the job that exports it.

Such versions have no number and share one registry name, which no caller can use; they answer to their base model's.
"""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.contracts.catalogue import BASE_ENCODERS
from app.contracts.tasks import TaskName
from app.core.ids import new_id
from app.registry.tables import JobRow, ModelRow, VersionRow

TASK: TaskName = "sentence-embedding"
_LOCK = 0x6D77  # first half of a pair that no other lock uses; the second is the base model's


class ExportRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def version(self, base_model: str) -> VersionRow | None:
        """What answers as `base_model`."""
        query = select(VersionRow).join(VersionRow.model).where(ModelRow.name_key == BASE_ENCODERS)
        live = query.where(VersionRow.base_model == base_model, VersionRow.deleted_at.is_(None))
        return self.session.scalars(live).first()

    def version_or_job(self, base_model: str, *, max_attempts: int, again_after: timedelta) -> VersionRow | JobRow:
        """The version, else its export: the one under way, or failed less than `again_after` ago; else a new one.

        One export of a base model at a time, whoever asks.
        """
        self.session.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(base_model))))
        made = self.session.scalars(
            select(JobRow)
            .where(JobRow.kind == "export", JobRow.base_model == base_model, JobRow.from_checkpoint.is_(None))
            .order_by(JobRow.created_at.desc())
            .limit(1)
        ).first()
        # After the job: it publishes in the transaction that ends it.
        if version := self.version(base_model):
            return version
        if made is not None and made.state != "succeeded" and stands(self.session, made, again_after):
            return made
        job = JobRow(
            id=new_id("exjob-"),
            kind="export",
            task=TASK,
            base_model=base_model,
            model_name=BASE_ENCODERS,
            seed=0,
            request=_NOTHING_TRAINED,
            max_attempts=max_attempts,
        )
        self.session.add(job)
        self.session.flush()
        return job


def stands(session: Session, export: JobRow, again_after: timedelta) -> bool:
    """Whether an export is under way or done, or failed so lately that another would hardly do better."""
    failed_at = export.finished_at if export.state in ("failed", "cancelled") else None
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return failed_at is None or now - failed_at < again_after


_NOTHING_TRAINED = {
    "multi_label": False,
    "peft": {"type": "full"},
    "hyperparameters": {},
    "early_stopping": None,
    "checkpoint": {},
    "dataset": {},
}
"""What the trainer reads of every job."""
