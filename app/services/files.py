"""Files and chunked uploads: bytes into the store, a profile onto the row. Knows no HTTP and no SQL."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import BinaryIO

from app.core.errors import InvalidRequest, NotFound
from app.core.ids import new_id
from app.core.rows import sniff
from app.core.settings import Settings
from app.registry.files import FileRepository, UploadRepository
from app.registry.session import Database
from app.registry.tables import FileRow, UploadPartRow, UploadRow
from app.services.profiling import profile_rows
from model_store.store import Store, Stored

PURPOSES = ("fine-tune", "batch", "user_data")
UPLOAD_LIFETIME = timedelta(hours=1)
MAX_PARTS = 10_000


@dataclass(frozen=True)
class UploadView:
    """An upload and, once complete, its file."""

    row: UploadRow
    file: FileRow | None = None


class FileService:
    def __init__(self, database: Database, store: Store, settings: Settings) -> None:
        self._database, self._store, self._limit = database, store, settings.max_upload_bytes

    def create(self, source: BinaryIO, filename: str, purpose: str, expires_after: int | None) -> FileRow:
        """Store, check and profile a file. Raises `FileRejected` naming the line; nothing is kept then."""
        _check_purpose(purpose)
        return self._keep(filename, purpose, expires_after, lambda key: self._store.put(key, source, self._limit))

    def _keep(self, filename: str, purpose: str, expires_after: int | None, write: Callable[[str], Stored]) -> FileRow:
        file_id = new_id("file-")
        key = f"files/{file_id}"
        stored = write(key)
        try:
            profile = None
            if purpose == "fine-tune":
                with self._store.open(key) as stream:
                    profile = profile_rows(stream, sniff(stream, filename)).model_dump(mode="json")
            row = FileRow(
                id=file_id,
                filename=_plain_name(filename),
                purpose=purpose,
                bytes=stored.bytes,
                sha256=stored.sha256,
                profile=profile,
                created_at=(now := datetime.now(UTC)),
                expires_at=now + timedelta(seconds=expires_after) if expires_after else None,
            )
            with self._database.unit_of_work() as session:
                return FileRepository(session).add(row)
        except BaseException:
            self._store.delete(key)
            raise

    def page(self, *, after: str | None, limit: int, order: str, purpose: str | None) -> tuple[list[FileRow], bool]:
        with self._database.unit_of_work() as session:
            return FileRepository(session).page(after=after, limit=limit, order=order, purpose=purpose)

    def get(self, file_id: str) -> FileRow:
        """Raises `NotFound`."""
        with self._database.unit_of_work() as session:
            row = FileRepository(session).get(file_id)
        if row is None:
            raise NotFound(f"no file {file_id!r}: GET /v1/files lists them", param="file_id")
        return row

    def content(self, file_id: str) -> tuple[FileRow, BinaryIO]:
        row = self.get(file_id)
        return row, self._store.open(f"files/{row.id}")

    def delete(self, file_id: str) -> None:
        """Raises `InvalidRequest` while an unfinished job needs the file."""
        with self._database.unit_of_work() as session:
            files = FileRepository(session)
            row = files.get(file_id)
            if row is None:
                raise NotFound(f"no file {file_id!r}: GET /v1/files lists them", param="file_id")
            if job := files.in_use(file_id):
                raise InvalidRequest(
                    f"file {file_id} is used by the unfinished job {job}: cancel it or wait for its end",
                    code="file_in_use",
                    param="file_id",
                )
            row.deleted_at = datetime.now(UTC)
        self._store.delete(f"files/{file_id}")

    # --- uploads in parts ---

    def start_upload(self, filename: str, purpose: str, size: int, expires_after: int | None) -> UploadView:
        _check_purpose(purpose)
        if size > self._limit:
            raise InvalidRequest(
                f"bytes is {size:,}; the limit is {self._limit:,}: split the file, or raise "
                "MODELWRIGHT_MAX_UPLOAD_BYTES",
                code="file_too_large",
                param="bytes",
            )
        now = datetime.now(UTC)
        row = UploadRow(
            id=new_id("upload_"),
            filename=_plain_name(filename),
            purpose=purpose,
            bytes=size,
            status="pending",
            file_expires_after=expires_after,
            created_at=now,
            expires_at=now + UPLOAD_LIFETIME,
        )
        with self._database.unit_of_work() as session:
            UploadRepository(session).add(row)
        return UploadView(row)

    def add_part(self, upload_id: str, source: BinaryIO) -> UploadPartRow:
        with self._database.unit_of_work() as session:
            uploads = UploadRepository(session)
            upload = _pending(uploads.get(upload_id), upload_id)
            parts = uploads.parts(upload_id)
            left = upload.bytes - sum(p.bytes for p in parts)
        if len(parts) >= MAX_PARTS:
            raise InvalidRequest(f"the upload has {MAX_PARTS:,} parts, the most there may be: send larger ones")
        part_id = new_id("part_")
        stored = self._store.put(f"uploads/{upload_id}/{part_id}", source, max(left, 0))
        row = UploadPartRow(id=part_id, upload_id=upload_id, bytes=stored.bytes, created_at=datetime.now(UTC))
        with self._database.unit_of_work() as session:
            UploadRepository(session).add(row)
        return row

    def complete_upload(self, upload_id: str, part_ids: list[str], md5: str | None) -> UploadView:
        """Join the parts in the order given. Raises `InvalidRequest` when bytes are missing or the sum is wrong."""
        with self._database.unit_of_work() as session:
            uploads = UploadRepository(session)
            upload = _pending(uploads.get(upload_id), upload_id)
            sizes = {p.id: p.bytes for p in uploads.parts(upload_id)}
        unknown = [p for p in part_ids if p not in sizes]
        if unknown or len(set(part_ids)) < len(part_ids):
            raise InvalidRequest(
                f"part_ids: {unknown[0] if unknown else 'a part'} is "
                f"{'not a part of this upload' if unknown else 'named twice'}: name each part once",
                param="part_ids",
            )
        total = sum(sizes[p] for p in part_ids)
        if total != upload.bytes:
            raise InvalidRequest(
                f"the parts hold {total:,} bytes, but the upload was made for {upload.bytes:,}: send what is "
                "missing, or cancel and start over",
                code="size_mismatch",
                param="part_ids",
            )
        keys = [f"uploads/{upload_id}/{p}" for p in part_ids]
        file = self._keep(
            upload.filename,
            upload.purpose,
            upload.file_expires_after,
            lambda key: self._store.put_all(key, keys, self._limit, md5=md5),
        )
        with self._database.unit_of_work() as session:
            row = _pending(UploadRepository(session).get(upload_id, lock=True), upload_id)
            row.status, row.file_id = "completed", file.id
        self._store.delete(f"uploads/{upload_id}")
        return UploadView(row, file)

    def cancel_upload(self, upload_id: str) -> UploadView:
        with self._database.unit_of_work() as session:
            row = _pending(UploadRepository(session).get(upload_id, lock=True), upload_id)
            row.status = "cancelled"
        self._store.delete(f"uploads/{upload_id}")
        return UploadView(row)


def _check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose is {purpose[:64]!r}; choose from {', '.join(PURPOSES)}", param="purpose")


def _pending(row: UploadRow | None, upload_id: str) -> UploadRow:
    if row is None:
        raise NotFound(f"no upload {upload_id!r}", param="upload_id")
    status = "expired" if row.status == "pending" and row.expires_at < datetime.now(UTC) else row.status
    if status != "pending":
        raise InvalidRequest(f"upload {upload_id} is {status}: start a new one", code="upload_closed")
    return row


def _plain_name(filename: str) -> str:
    """The last part of what the client called it, for display only: no path is ever made of it."""
    name = "".join(c for c in PurePath(filename.replace("\\", "/")).name if c.isprintable())
    return name[:255] or "upload"
