"""Files and chunked uploads: bytes into the store, a profile onto the row. Knows no HTTP and no SQL."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import PurePath
from typing import BinaryIO

from app.core.creation import Creation
from app.core.errors import FileRejected, InvalidRequest, NotFound, Unavailable
from app.core.ids import new_id
from app.core.rows import sniff
from app.core.settings import Settings
from app.registry.creations import CreationRepository
from app.registry.files import FileRepository, UploadRepository
from app.registry.quotas import require_bytes
from app.registry.session import Database
from app.registry.tables import FileRow, UploadPartRow, UploadRow
from app.services.profiling import profile_rows
from model_store.store import Store, Stored

PURPOSES = ("fine-tune", "batch", "user_data")
UPLOAD_LIFETIME = timedelta(hours=1)
MAX_PARTS = 10_000


@dataclass(frozen=True)
class NewFile:
    """What its sender says about a file."""

    filename: str
    purpose: str
    expires_after: int | None

    def check(self) -> None:
        if self.purpose not in PURPOSES:
            raise InvalidRequest(
                f"purpose is {self.purpose[:64]!r}; choose from {', '.join(PURPOSES)}", param="purpose"
            )


@dataclass(frozen=True)
class UploadView:
    """An upload and, once complete, its file."""

    row: UploadRow
    file: FileRow | None = None


class FileService:
    def __init__(self, database: Database, store: Store, settings: Settings) -> None:
        self._database, self._store, self._limit = database, store, settings.max_upload_bytes
        self._quota = settings.max_stored_bytes

    def create(self, source: BinaryIO, new: NewFile, creation: Creation, render: Callable[[FileRow], str]) -> str:
        """Store, check and profile a file. Raises `FileRejected` naming the line; nothing is kept then."""
        new.check()
        file_id = new_id("file-")
        with self._stored(f"files/{file_id}", lambda key: self._store.put(key, source, self._limit)) as stored:
            creation = creation.of(stored.sha256)
            self._answer_again(creation)
            row = self._described(file_id, stored, new, creation.key_id)
            with self._database.unit_of_work() as session:
                creations = CreationRepository(session)
                creations.check(creation)
                require_bytes(session, creation.key_id, stored.bytes, self._quota)
                return creations.remember(creation, render(FileRepository(session).add(row)))

    def _answer_again(self, creation: Creation) -> None:
        """Raises `AlreadyCreated` before work is done for nothing, or refused because it was done before."""
        if creation.may_repeat:
            with self._database.unit_of_work() as session:
                CreationRepository(session).check(creation)

    @contextmanager
    def _stored(self, key: str, write: Callable[[str], Stored]) -> Iterator[Stored]:
        """Bytes at `key` that go again when the block raises."""
        stored = write(key)
        try:
            yield stored
        except Unavailable:
            raise  # perhaps after the commit: a row may name the bytes, and the sweep removes them if none does
        except BaseException:
            self._store.delete(key)
            raise

    def _described(self, file_id: str, stored: Stored, new: NewFile, key_id: str) -> FileRow:
        """The file's row, profiled. Outside any transaction: a large file takes longer than one may last."""
        profile = None
        if new.purpose == "fine-tune":
            with self._store.open(f"files/{file_id}") as stream:
                profile = profile_rows(stream, sniff(stream, new.filename)).model_dump(mode="json")
        now = datetime.now(UTC)
        return FileRow(
            id=file_id,
            filename=_plain_name(new.filename),
            purpose=new.purpose,
            bytes=stored.bytes,
            sha256=stored.sha256,
            profile=profile,
            key_id=key_id,
            created_at=now,
            expires_at=now + timedelta(seconds=new.expires_after) if new.expires_after else None,
        )

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
        """Raises `InvalidRequest` while an unfinished job or batch needs the file."""
        with self._database.unit_of_work() as session:
            files = FileRepository(session)
            row = files.get(file_id, lock="change")
            if row is None:
                raise NotFound(f"no file {file_id!r}: GET /v1/files lists them", param="file_id")
            if user := files.in_use(file_id):
                raise InvalidRequest(
                    f"file {file_id} is used by the unfinished {user}: cancel that or wait for its end",
                    code="file_in_use",
                    param="file_id",
                )
            row.deleted_at = datetime.now(UTC)
        self._store.delete(f"files/{file_id}")

    # --- uploads in parts ---

    def start_upload(self, new: NewFile, size: int, creation: Creation, render: Callable[[UploadView], str]) -> str:
        new.check()
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
            filename=_plain_name(new.filename),
            purpose=new.purpose,
            bytes=size,
            status="pending",
            file_expires_after=new.expires_after,
            key_id=creation.key_id,
            created_at=now,
            expires_at=now + UPLOAD_LIFETIME,
        )
        with self._database.unit_of_work() as session:
            creations = CreationRepository(session)
            creations.check(creation)
            require_bytes(session, creation.key_id, size, self._quota)
            UploadRepository(session).add(row)
            return creations.remember(creation, render(UploadView(row)))

    def add_part(
        self, upload_id: str, source: BinaryIO, creation: Creation, render: Callable[[UploadPartRow], str]
    ) -> str:
        with self._database.unit_of_work() as session:
            upload = _found(UploadRepository(session).get(upload_id), upload_id)
        if not creation.may_repeat:
            _pending(upload)
        part_id = new_id("part_")
        key = f"uploads/{upload_id}/{part_id}"
        with self._stored(key, lambda key: self._store.put(key, source, upload.bytes)) as stored:
            creation = creation.of(stored.sha256)
            row = UploadPartRow(id=part_id, upload_id=upload_id, bytes=stored.bytes, created_at=datetime.now(UTC))
            with self._database.unit_of_work() as session:
                creations, uploads = CreationRepository(session), UploadRepository(session)
                creations.check(creation)
                upload = _pending(_found(uploads.get(upload_id, lock=True), upload_id))
                parts = uploads.parts(upload_id)
                if len(parts) >= MAX_PARTS:
                    raise InvalidRequest(f"the upload has {MAX_PARTS:,} parts, the most there may be: send larger ones")
                if (total := stored.bytes + sum(p.bytes for p in parts)) > upload.bytes:
                    raise FileRejected(
                        f"with this part the upload holds {total:,} bytes, but it was made for {upload.bytes:,}: "
                        "send less, or cancel and start over",
                        code="file_too_large",
                        param="data",
                    )
                uploads.add(row)
                return creations.remember(creation, render(row))

    def complete_upload(
        self,
        upload_id: str,
        part_ids: list[str],
        md5: str | None,
        creation: Creation,
        render: Callable[[UploadView], str],
    ) -> str:
        """Join the parts in the order given. Raises `InvalidRequest` when bytes are missing or the sum is wrong."""
        self._answer_again(creation)
        with self._database.unit_of_work() as session:
            uploads = UploadRepository(session)
            upload = _pending(_found(uploads.get(upload_id), upload_id))
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
        file_id = new_id("file-")
        with self._stored(
            f"files/{file_id}", lambda key: self._store.put_all(key, keys, self._limit, md5=md5)
        ) as stored:
            new = NewFile(upload.filename, upload.purpose, upload.file_expires_after)
            file = self._described(file_id, stored, new, creation.key_id)
            with self._database.unit_of_work() as session:
                creations = CreationRepository(session)
                creations.check(creation)
                row = _pending(_found(UploadRepository(session).get(upload_id, lock=True), upload_id))
                FileRepository(session).add(file)  # its bytes count already, as the pending upload's
                row.status, row.file_id = "completed", file_id
                answer = creations.remember(creation, render(UploadView(row, file)))
        self._store.delete(f"uploads/{upload_id}")
        return answer

    def cancel_upload(self, upload_id: str) -> UploadView:
        with self._database.unit_of_work() as session:
            row = _pending(_found(UploadRepository(session).get(upload_id, lock=True), upload_id))
            row.status = "cancelled"
        self._store.delete(f"uploads/{upload_id}")
        return UploadView(row)


def _found(row: UploadRow | None, upload_id: str) -> UploadRow:
    if row is None:
        raise NotFound(f"no upload {upload_id!r}", param="upload_id")
    return row


def _pending(row: UploadRow) -> UploadRow:
    status = "expired" if row.status == "pending" and row.expires_at < datetime.now(UTC) else row.status
    if status != "pending":
        raise InvalidRequest(f"upload {row.id} is {status}: start a new one", code="upload_closed")
    return row


def _plain_name(filename: str) -> str:
    """The last part of what the client called it, for display only: no path is ever made of it."""
    name = "".join(c for c in PurePath(filename.replace("\\", "/")).name if c.isprintable())
    return name[:255] or "upload"
