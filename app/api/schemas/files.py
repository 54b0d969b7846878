"""OpenAI's File, Upload and Part objects."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from app.contracts.common import ObjectId, Strict
from app.core.clock import unix
from app.services.files import UploadView

if TYPE_CHECKING:
    from app.registry.tables import FileRow, UploadPartRow

ExpirySeconds = Annotated[int, Field(ge=3600, le=2_592_000)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]+$")]


class ExpiresAfter(Strict):
    anchor: Literal["created_at"]
    seconds: ExpirySeconds


class FileObject(BaseModel):
    """A stored file. `profile` is what the upload learnt about its rows."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
    sha256: str
    profile: dict[str, Any] | None = None

    @classmethod
    def of(cls, row: "FileRow") -> "FileObject":
        profile = row.profile and {
            "format": row.profile["format"],
            "rows": row.profile["rows"],
            "duplicate_rows": row.profile["duplicate_rows"],
            "columns": row.profile["column_order"],
        }
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=unix(row.created_at),
            expires_at=unix(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
            sha256=row.sha256,
            profile=profile,
        )


class UploadCreate(Strict):
    """`POST /v1/uploads`."""

    bytes: Annotated[int, Field(ge=1, le=1 << 50)]
    filename: FileName
    mime_type: Annotated[str, StringConstraints(max_length=255)] = "application/octet-stream"
    purpose: Annotated[str, StringConstraints(max_length=64)]
    expires_after: ExpiresAfter | None = None


class UploadComplete(Strict):
    """`POST /v1/uploads/{id}/complete`."""

    part_ids: Annotated[list[ObjectId], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{32}$")] | None = None


class UploadObject(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None

    @classmethod
    def of(cls, view: UploadView) -> "UploadObject":
        row = view.row
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=unix(row.created_at),
            expires_at=unix(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
            status=row.status if view.file is None else "completed",
            file=FileObject.of(view.file) if view.file else None,
        )


class PartObject(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, row: "UploadPartRow") -> "PartObject":
        return cls(id=row.id, created_at=unix(row.created_at), upload_id=row.upload_id)
