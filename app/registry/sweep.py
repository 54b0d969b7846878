"""What nobody needs any more, decided by rows alone. Marks rows; knows no bytes and no store.

Times are the database's. A row is marked first; what it names may go after `GRACE`, when whoever read the row before
the mark is through, and only if no unfinished job has come to need it since.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, case, delete, exists, false, func, or_, select, text, update
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from app.contracts.batches import OPEN_STATUSES
from app.registry.creations import CreationRepository
from app.registry.tables import (
    BatchRow,
    CheckpointRow,
    FileRow,
    JobRow,
    UploadPartRow,
    UploadRow,
    VersionRow,
    WebhookDeliveryRow,
)

GRACE = timedelta(hours=1)
_DELIVERIES_KEPT = timedelta(days=7)
_LEADER_LOCK = 0x6D77_0004  # any number that no other lock uses
_BATCH = 1000  # ids in one query

_NOW = func.clock_timestamp()


@dataclass(frozen=True)
class JobStand:
    """Which of a job's unnamed bytes may still be named."""

    ended: bool
    running_fence: int | None
    adopted_fence: int


class SweepRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def lead(self) -> bool:
        """Whether this transaction is the only one that sweeps; it may stay idle while bytes are removed."""
        self.session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '1h'"))
        return bool(self.session.scalar(select(func.pg_try_advisory_xact_lock(_LEADER_LOCK))))

    # --- rows ---

    def mark(self, checkpoint_days: float) -> dict[str, int]:
        """Mark what has expired and drop rows past their time; how many of each."""
        return {
            "files": self._count(
                update(FileRow)
                .where(FileRow.deleted_at.is_(None), FileRow.expires_at < _NOW, ~_uses_file())
                .values(deleted_at=_NOW)
                .returning(FileRow.id)
            ),
            "uploads": self._count(
                update(UploadRow)
                .where(UploadRow.status == "pending", UploadRow.expires_at < _NOW)
                .values(status="expired")
                .returning(UploadRow.id)
            ),
            "parts": self._count(
                delete(UploadPartRow)
                .where(UploadPartRow.upload_id.in_(select(UploadRow.id).where(UploadRow.expires_at < _NOW - GRACE)))
                .returning(UploadPartRow.id)
            ),
            "checkpoints": self._count(
                update(CheckpointRow)
                .where(
                    CheckpointRow.deleted_at.is_(None),
                    CheckpointRow.job_id.in_(
                        select(JobRow.id).where(JobRow.finished_at < _NOW - timedelta(days=checkpoint_days))
                    ),
                    ~_uses_checkpoint(),
                )
                .values(deleted_at=_NOW)
                .returning(CheckpointRow.id)
            ),
            "deliveries": self._count(
                delete(WebhookDeliveryRow)
                .where(WebhookDeliveryRow.finished_at < _NOW - _DELIVERIES_KEPT)
                .returning(WebhookDeliveryRow.number)
            ),
            "creations": CreationRepository(self.session).delete_old(),
        }

    def _count(self, statement: Any) -> int:
        return len(self.session.scalars(statement).all())

    # --- what of the bytes may go; ask after listing them, so that a row written meanwhile counts ---

    def before_grace(self) -> float:
        """Unix time before which bytes were written that have waited long enough for a row."""
        return self._unix(_NOW)

    def before_any_claim(self) -> float:
        """The same for files: a running job may have stored one whose row it writes when the database is back."""
        oldest = select(func.min(JobRow.claimed_at)).where(JobRow.state == "running").scalar_subquery()
        return self._unix(func.least(_NOW, oldest))  # `least` ignores NULL

    def _unix(self, moment: Any) -> float:
        return float(self.session.scalars(select(func.extract("epoch", moment - GRACE))).one())

    def files(self, ids: Sequence[str]) -> dict[str, bool]:
        """Of the files that have a row: whether the bytes may go."""
        return self._may_go(FileRow.id, ids, (FileRow.deleted_at < _NOW - GRACE) & ~_uses_file())

    def uploads(self, ids: Sequence[str]) -> dict[str, bool]:
        # Also of completed ones: their parts are removed at once, unless the gateway died before it could.
        return self._may_go(UploadRow.id, ids, UploadRow.expires_at < _NOW - GRACE)

    def batches(self, ids: Sequence[str]) -> dict[str, bool]:
        """Their answers in parts, which are one file once a batch has ended."""
        return self._may_go(BatchRow.id, ids, BatchRow.status.not_in(OPEN_STATUSES))

    def checkpoints(self, keys: Sequence[str]) -> dict[str, bool]:
        old = CheckpointRow.deleted_at < _NOW - GRACE
        return self._may_go(CheckpointRow.key, keys, old & ~_uses_checkpoint())

    def named_artifacts(self, keys: Sequence[str]) -> set[str]:
        """Those that a version names; of deleted ones too, which `deleted_artifacts` is about."""
        return set(self._may_go(VersionRow.artifact, keys, false()))

    def jobs(self, ids: Iterable[str]) -> dict[str, JobStand]:
        running = case((JobRow.state == "running", JobRow.fence), else_=None)
        query = select(JobRow.id, JobRow.finished_at.is_not(None), running, JobRow.adopted_fence)
        return {
            job_id: JobStand(*stand)
            for batch in _batches(sorted(set(ids)))
            for job_id, *stand in self.session.execute(query.where(JobRow.id.in_(batch)))
        }

    def deleted_artifacts(self) -> list[str]:
        """Keys of deleted versions whose bytes may go and have not gone yet."""
        return list(
            self.session.scalars(
                select(VersionRow.artifact).where(
                    VersionRow.deleted_at < _NOW - GRACE, VersionRow.collected_at.is_(None), ~_uses_version()
                )
            )
        )

    def collected(self, artifact: str) -> None:
        """Note that the bytes are gone."""
        self.session.execute(update(VersionRow).where(VersionRow.artifact == artifact).values(collected_at=_NOW))

    def _may_go(
        self, key: InstrumentedAttribute[str], keys: Sequence[str], gone: ColumnElement[bool]
    ) -> dict[str, bool]:
        query = select(key, func.coalesce(gone, False))
        return {k: bool(v) for batch in _batches(keys) for k, v in self.session.execute(query.where(key.in_(batch)))}


def _uses_file() -> ColumnElement[bool]:
    splits = (JobRow.training_file, JobRow.validation_file, JobRow.test_file)
    return or_(
        exists().where(JobRow.finished_at.is_(None), or_(*(split == FileRow.id for split in splits))),
        exists().where(BatchRow.status.in_(OPEN_STATUSES), BatchRow.input_file == FileRow.id),
    )


def _uses_checkpoint() -> ColumnElement[bool]:
    return exists().where(JobRow.finished_at.is_(None), JobRow.from_checkpoint == CheckpointRow.id)


def _uses_version() -> ColumnElement[bool]:
    """As its base, or as the base of the training whose checkpoint it starts from or exports."""
    first = aliased(JobRow)
    return (
        select(JobRow.id)
        .outerjoin(CheckpointRow, CheckpointRow.id == JobRow.from_checkpoint)
        .outerjoin(first, first.id == CheckpointRow.job_id)
        .where(JobRow.finished_at.is_(None), VersionRow.id.in_((JobRow.base_version, first.base_version)))
        .correlate(VersionRow)
        .exists()
    )


def _batches(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[at : at + _BATCH] for at in range(0, len(ids), _BATCH))
