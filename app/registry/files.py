"""Rows of files and uploads."""

from typing import Literal

from sqlalchemy import func, select, union_all
from sqlalchemy.orm import Session

from app.contracts.batches import OPEN_STATUSES
from app.registry.paging import page
from app.registry.tables import BatchRow, FileRow, JobRow, UploadPartRow, UploadRow


class FileRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, row: FileRow) -> FileRow:
        self.session.add(row)
        self.session.flush()
        return row

    def get(
        self, file_id: str, *, expired: bool = False, lock: Literal["keep", "change"] | None = None
    ) -> FileRow | None:
        """The file, unless deleted or, but for `expired`, past its time.

        With the lock `keep` nobody deletes it until this transaction ends; whoever will, takes `change`.
        """
        query = select(FileRow).where(FileRow.id == file_id, FileRow.deleted_at.is_(None))
        if not expired:
            query = query.where((FileRow.expires_at.is_(None)) | (FileRow.expires_at > func.now()))
        if lock:
            query = query.with_for_update(read=lock == "keep")
        return self.session.scalars(query).first()

    def page(self, *, after: str | None, limit: int, order: str, purpose: str | None) -> tuple[list[FileRow], bool]:
        query = select(FileRow).where(
            FileRow.deleted_at.is_(None), (FileRow.expires_at.is_(None)) | (FileRow.expires_at > func.now())
        )
        if purpose:
            query = query.where(FileRow.purpose == purpose)
        return page(self.session, query, FileRow, after=after, limit=limit, order=order)

    def in_use(self, file_id: str) -> str | None:
        """The id of an unfinished job or batch that needs the file."""
        jobs = select(JobRow.id).where(
            JobRow.finished_at.is_(None),
            (JobRow.training_file == file_id) | (JobRow.validation_file == file_id) | (JobRow.test_file == file_id),
        )
        batches = select(BatchRow.id).where(BatchRow.status.in_(OPEN_STATUSES), BatchRow.input_file == file_id)
        return self.session.scalars(union_all(jobs, batches)).first()


class UploadRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, row: UploadRow | UploadPartRow) -> None:
        self.session.add(row)
        self.session.flush()

    def get(self, upload_id: str, *, lock: bool = False) -> UploadRow | None:
        query = select(UploadRow).where(UploadRow.id == upload_id)
        if lock:
            # Afresh: while this waited for the lock, its holder may have closed the upload.
            query = query.with_for_update().execution_options(populate_existing=True)
        return self.session.scalars(query).first()

    def parts(self, upload_id: str) -> list[UploadPartRow]:
        return list(self.session.scalars(select(UploadPartRow).where(UploadPartRow.upload_id == upload_id)))
