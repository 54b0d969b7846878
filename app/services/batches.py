"""Batches as callers see them: made, listed, cancelled. Their lines are run by `batch_runner.py`, not from here."""

from collections.abc import Callable

from app.contracts.batches import OPEN_STATUSES, BatchRequest
from app.core.creation import Creation
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import new_id
from app.core.settings import Settings
from app.registry.batches import BatchRepository
from app.registry.creations import CreationRepository
from app.registry.files import FileRepository
from app.registry.quotas import require_job
from app.registry.session import Database
from app.registry.tables import BatchRow


class BatchService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._max_queued = database, settings.max_queued_jobs

    def create(self, request: BatchRequest, creation: Creation, render: Callable[[BatchRow], str]) -> str:
        """Raises `InvalidRequest` for a file that is no batch input; its lines are checked later, by who runs it."""
        expires = request.output_expires_after
        with self._database.unit_of_work() as session:
            creations = CreationRepository(session)
            creations.check(creation)
            file = FileRepository(session).get(request.input_file_id, lock="keep")
            if file is None:
                raise InvalidRequest(
                    f"input_file_id: no file {request.input_file_id!r}: upload it with POST /v1/files",
                    code="file_not_found",
                    param="input_file_id",
                )
            if file.purpose != "batch":
                raise InvalidRequest(
                    f"input_file_id: file {file.id} has purpose {file.purpose!r}; upload it with 'batch'",
                    param="input_file_id",
                )
            require_job(session, creation.key_id, self._max_queued)
            row = BatchRow(
                id=new_id("batch_"),
                key_id=creation.key_id,
                endpoint=request.endpoint,
                input_file=file.id,
                completion_window=request.completion_window,
                metadata_=request.metadata,
                output_expires_after=expires.seconds if expires else None,
            )
            return creations.remember(creation, render(BatchRepository(session).add(row)))

    def get(self, batch_id: str) -> BatchRow:
        with self._database.unit_of_work() as session:
            return _found(BatchRepository(session).get(batch_id), batch_id)

    def page(self, *, after: str | None, limit: int) -> tuple[list[BatchRow], bool]:
        with self._database.unit_of_work() as session:
            return BatchRepository(session).page(after=after, limit=limit)

    def cancel(self, batch_id: str) -> BatchRow:
        """Raises `InvalidRequest` for a batch that has ended: a client must not try again."""
        with self._database.unit_of_work() as session:
            batches = BatchRepository(session)
            row = _found(batches.get(batch_id, lock=True), batch_id)
            if row.status not in OPEN_STATUSES:
                raise InvalidRequest(
                    f"batch {batch_id} is {row.status} and cannot be cancelled any more",
                    code="batch_ended",
                    param="batch_id",
                )
            batches.cancel(row)
            return row


def _found(row: BatchRow | None, batch_id: str) -> BatchRow:
    if row is None:
        raise NotFound(f"no batch {batch_id[:64]!r}: GET /v1/batches lists them", param="batch_id")
    return row
