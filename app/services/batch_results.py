"""The end of a batch: stored parts become its output and error file, in one transaction with its last status.

Runs again from the start when it is cut short: until the transaction, nothing of it shows.
"""

from datetime import UTC, datetime, timedelta
from io import BytesIO

from app.core.errors import Unavailable
from app.core.ids import new_id
from app.registry.batches import BatchRepository
from app.registry.files import FileRepository
from app.registry.session import Database
from app.registry.tables import BatchRow, FileRow
from app.services.batch_lines import committed, read, unanswered
from model_store.store import Store

_NEVER = {
    "expired": ("batch_expired", "the completion window ended before this request was executed"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request was executed"),
}


def write_results(database: Database, store: Store, batch_id: str, fence: int, status: str) -> None:
    """End the batch as `status`, with what was answered in files. Raises `Unavailable` when the fence moved on."""
    with database.unit_of_work() as session:
        row = BatchRepository(session).get(batch_id)
    if row is None:
        raise Unavailable(f"batch {batch_id} is gone")
    files = {kind: _joined(store, row, kind, keys) for kind, keys in _parts(store, row, fence, status).items() if keys}
    with database.unit_of_work() as session:
        for file in files.values():
            FileRepository(session).add(file)
        named = {f"{kind}_file": file.id for kind, file in files.items()}
        if not BatchRepository(session).end(batch_id, fence, status, **named):
            raise Unavailable(f"another gateway has batch {batch_id}")
    store.delete(f"batches/{batch_id}")


def _parts(store: Store, row: BatchRow, fence: int, status: str) -> dict[str, list[str]]:
    """Store keys of what makes up each file."""
    folder = f"batches/{row.id}"
    names = {
        kind: {entry.key.rpartition("/")[2] for entry in store.entries(f"{folder}/{kind}")}
        for kind in ("output", "error")
    }
    chain = committed(names["output"] | names["error"], row.done)
    keys = {kind: [f"{folder}/{kind}/{name}" for name in chain if name in names[kind]] for kind in names}
    if row.done < row.total:
        with store.open(f"files/{row.input_file}") as stream:
            rest = b"".join(unanswered(line, *_NEVER[status]) for line in read(stream, row.done))
        keys["error"].append(f"{folder}/rest/{fence}")
        store.put(keys["error"][-1], BytesIO(rest), len(rest))
    return keys


def _joined(store: Store, row: BatchRow, kind: str, keys: list[str]) -> FileRow:
    """The file of these parts; its bytes go with the sweep if no row comes to name them."""
    file_id, now = new_id("file-"), datetime.now(UTC)
    stored = store.put_all(f"files/{file_id}", keys, 1 << 40)
    lifetime = row.output_expires_after
    return FileRow(
        id=file_id,
        filename=f"{row.id}_{kind}.jsonl",
        purpose="batch_output",
        bytes=stored.bytes,
        sha256=stored.sha256,
        key_id=row.key_id,
        created_at=now,
        expires_at=now + timedelta(seconds=lifetime) if lifetime else None,
    )
