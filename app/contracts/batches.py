"""The body of `POST /v1/batches`, its fields bounded, and the menu: endpoints, statuses. Knows no row and no line."""

from typing import Annotated, Literal

from pydantic import Field

from app.contracts.common import ObjectId, Strict
from app.contracts.fine_tuning import Metadata

Endpoint = Literal["/predict", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/moderations"]
"""What a batch may ask for; one whose route this gateway lacks is refused when the batch is made."""
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
OPEN_STATUSES: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")


class OutputExpiresAfter(Strict):
    anchor: Literal["created_at"]
    """Of the output file."""
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(Strict):
    """A batch as the caller asks for it."""

    input_file_id: ObjectId
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None
