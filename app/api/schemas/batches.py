"""OpenAI's batch object."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from app.contracts.batches import BatchStatus
from app.core.clock import unix

if TYPE_CHECKING:
    from app.registry.tables import BatchRow


class RequestCounts(BaseModel):
    """`completed` and `failed` have been answered; the rest, in a batch that ended early, never will be."""

    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, row: "BatchRow") -> "BatchObject":
        return cls(
            id=row.id,
            endpoint=row.endpoint,
            errors=row.errors,
            input_file_id=row.input_file,
            completion_window=row.completion_window,
            status=row.status,
            output_file_id=row.output_file,
            error_file_id=row.error_file,
            created_at=unix(row.created_at),
            in_progress_at=unix(row.in_progress_at),
            expires_at=unix(row.expires_at),
            finalizing_at=unix(row.finalizing_at),
            completed_at=unix(row.completed_at),
            failed_at=unix(row.failed_at),
            expired_at=unix(row.expired_at),
            cancelling_at=unix(row.cancelling_at),
            cancelled_at=unix(row.cancelled_at),
            request_counts=RequestCounts(total=row.total, completed=row.completed, failed=row.failed),
            metadata=row.metadata_,
        )
