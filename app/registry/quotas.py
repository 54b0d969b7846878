"""What a key has in use, counted exactly: callers of one key take turns from the count to the end of their
transaction, so count last, just before the insert. Knows no default: the caller brings it from the settings.
"""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.contracts.batches import OPEN_STATUSES
from app.core.errors import QuotaExceeded, StorageQuotaExceeded
from app.registry.tables import ApiKeyRow, BatchRow, FileRow, JobRow, UploadRow


def require_job(session: Session, key_id: str, default: int) -> None:
    """Raises `QuotaExceeded` when the key has as many unfinished jobs, batches included, as it may."""
    jobs = select(func.count()).where(JobRow.key_id == key_id, JobRow.finished_at.is_(None))
    batches = select(func.count()).where(BatchRow.key_id == key_id, BatchRow.status.in_(OPEN_STATUSES))
    use = select(jobs.scalar_subquery() + batches.scalar_subquery())
    limit, used = _limit_and_use(session, key_id, ApiKeyRow.max_queued_jobs, default, use)
    if used >= limit:
        raise QuotaExceeded(
            f"this key has {used:,} unfinished jobs; its limit is {limit:,}: wait until one ends, cancel one, or have "
            f"the limit raised (`modelwright keys update {key_id} --max-queued-jobs N`)"
        )


def require_bytes(session: Session, key_id: str, new: int, default: int) -> None:
    """Raises `StorageQuotaExceeded` when `new` bytes are too many beside the key's files and pending uploads."""
    now = func.clock_timestamp()
    files = select(func.coalesce(func.sum(FileRow.bytes), 0)).where(
        FileRow.key_id == key_id,
        FileRow.deleted_at.is_(None),
        FileRow.expires_at.is_(None) | (FileRow.expires_at > now),
    )
    uploads = select(func.coalesce(func.sum(UploadRow.bytes), 0)).where(
        UploadRow.key_id == key_id, UploadRow.status == "pending", UploadRow.expires_at > now
    )
    use = select(files.scalar_subquery() + uploads.scalar_subquery())
    limit, used = _limit_and_use(session, key_id, ApiKeyRow.max_stored_bytes, default, use)
    if used + new > limit:
        raise StorageQuotaExceeded(
            f"this key stores {used:,} bytes (pending uploads included) and {new:,} more were sent; its limit is "
            f"{limit:,}: delete files, or have the limit raised (`modelwright keys update {key_id} "
            "--max-stored-bytes N`)"
        )


def _limit_and_use(session: Session, key_id: str, column: Any, default: int, use: Any) -> tuple[int, int]:
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"quota {key_id}", 0))))
    own = select(column).where(ApiKeyRow.id == key_id).scalar_subquery()
    limit, used = session.execute(select(func.coalesce(own, default), use.scalar_subquery())).one()
    return limit, int(used)
