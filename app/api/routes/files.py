"""`/v1/files` and `/v1/uploads`: OpenAI's shapes; bodies go to disk as they arrive."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from app.api.deps import BareCreationDep, CreationDep, JsonAnswer, ServicesDep, requires
from app.api.schemas.common import Deleted, ListOf
from app.api.schemas.files import (
    ExpirySeconds,
    FileObject,
    PartObject,
    UploadComplete,
    UploadCreate,
    UploadObject,
)
from app.core.errors import InvalidRequest
from app.core.settings import MIB, Settings
from app.services.files import NewFile, UploadView

Limit = Annotated[int, Query(ge=1, le=10_000)]
After = Annotated[str | None, Query(max_length=64)]
_EXPIRY: TypeAdapter[int] = TypeAdapter(ExpirySeconds)
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["fine-tune", "batch", "user_data"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}
_PART = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The multipart form, spooled to disk past 1 MiB."""
    try:
        form = await request.form(max_files=1, max_fields=50)
    except HTTPException as exc:
        if exc.status_code == 413:
            raise
        raise InvalidRequest(f"the multipart body cannot be read: {exc.detail}", code="invalid_form") from exc
    try:
        yield form
    finally:
        await form.close()


def _binary(form: FormData, field: str) -> tuple[BinaryIO, str]:
    value = form.get(field)
    if not isinstance(value, UploadFile):
        raise InvalidRequest(f"{field}: send the bytes as the multipart field {field!r}", param=field)
    return value.file, value.filename or "upload"


def _expires_after(form: FormData) -> int | None:
    seconds, anchor = form.get("expires_after[seconds]"), form.get("expires_after[anchor]")
    if seconds is None and anchor is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest("expires_after[anchor] must be 'created_at'", param="expires_after.anchor")
    try:
        return _EXPIRY.validate_python(seconds)
    except ValidationError as exc:
        raise InvalidRequest(
            f"expires_after[seconds] is {str(seconds)[:40]!r}; give 3,600 to 2,592,000 (an hour to 30 days)",
            param="expires_after.seconds",
        ) from exc


def _known_fields(form: FormData, known: set[str]) -> None:
    for name in form:
        if name not in known:
            raise InvalidRequest(f"{name[:64]}: unknown field: remove it", code="unknown_field", param=name[:64])


def _texts(form: FormData) -> list[str]:
    """What a form says beside the bytes in it."""
    pairs = [(name, value if isinstance(value, str) else value.filename or "") for name, value in form.multi_items()]
    return [text for pair in pairs for text in pair]


def build(settings: Settings) -> APIRouter:
    """The routes; their size limit is a setting."""
    router = APIRouter(tags=["files"])
    # Room for the multipart framing around the largest file.
    body_limit = settings.max_upload_bytes + MIB

    @router.post(
        "/v1/files",
        dependencies=[requires("train")],
        response_model=FileObject,
        openapi_extra=_FORM,
        max_body_size=body_limit,
    )
    async def create_file(request: Request, services: ServicesDep, creation: BareCreationDep) -> Response:
        """Upload a data set (JSONL, CSV or Parquet). A broken line is refused by its number."""
        async with _form(request) as form:
            _known_fields(form, {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"})
            source, filename = _binary(form, "file")
            purpose = form.get("purpose")
            if not isinstance(purpose, str):
                raise InvalidRequest("purpose: this field is required: send 'fine-tune'", param="purpose")
            expires = _expires_after(form)
            answer = await run_in_threadpool(
                services.files.create,
                source,
                NewFile(filename, purpose, expires),
                creation.of(*_texts(form)),
                lambda row: FileObject.of(row).model_dump_json(),
            )
        return JsonAnswer(answer)

    @router.get("/v1/files", dependencies=[requires("read")])
    def list_files(
        services: ServicesDep,
        after: After = None,
        limit: Limit = 10_000,
        order: Literal["asc", "desc"] = "desc",
        purpose: Annotated[str | None, Query(max_length=64)] = None,
    ) -> ListOf[FileObject]:
        """All files, newest first."""
        rows, more = services.files.page(after=after, limit=limit, order=order, purpose=purpose)
        return ListOf.of([FileObject.of(r) for r in rows], more)

    @router.get("/v1/files/{file_id}", dependencies=[requires("read")])
    def retrieve_file(file_id: str, services: ServicesDep) -> FileObject:
        """One file, with the profile of its rows."""
        return FileObject.of(services.files.get(file_id))

    @router.get("/v1/files/{file_id}/content", dependencies=[requires("read")], response_class=StreamingResponse)
    def file_content(file_id: str, services: ServicesDep) -> StreamingResponse:
        """The bytes as they were sent."""
        row, stream = services.files.content(file_id)
        name = re.sub(r"[^A-Za-z0-9._-]", "_", row.filename)
        headers = {
            "content-length": str(row.bytes),
            "content-disposition": f'attachment; filename="{name}"',
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(_chunks(stream), media_type="application/octet-stream", headers=headers)

    @router.delete("/v1/files/{file_id}", dependencies=[requires("train")])
    def delete_file(file_id: str, services: ServicesDep) -> Deleted:
        """Delete a file that no unfinished job needs."""
        services.files.delete(file_id)
        return Deleted(id=file_id, object="file")

    @router.post("/v1/uploads", dependencies=[requires("train")], response_model=UploadObject)
    def create_upload(body: UploadCreate, services: ServicesDep, creation: CreationDep) -> Response:
        """Start a file that arrives in parts; it expires after an hour."""
        new = NewFile(body.filename, body.purpose, body.expires_after.seconds if body.expires_after else None)
        return JsonAnswer(services.files.start_upload(new, body.bytes, creation, _upload_text))

    @router.post(
        "/v1/uploads/{upload_id}/parts",
        dependencies=[requires("train")],
        response_model=PartObject,
        openapi_extra=_PART,
        max_body_size=body_limit,
    )
    async def add_part(upload_id: str, request: Request, services: ServicesDep, creation: BareCreationDep) -> Response:
        """Send one part; parts may arrive in any order."""
        async with _form(request) as form:
            _known_fields(form, {"data"})
            source, _ = _binary(form, "data")
            answer = await run_in_threadpool(
                services.files.add_part,
                upload_id,
                source,
                creation.of(*_texts(form)),
                lambda row: PartObject.of(row).model_dump_json(),
            )
        return JsonAnswer(answer)

    @router.post("/v1/uploads/{upload_id}/complete", dependencies=[requires("train")], response_model=UploadObject)
    def complete_upload(upload_id: str, body: UploadComplete, services: ServicesDep, creation: CreationDep) -> Response:
        """Join the parts, in the order given, into a file and check it."""
        return JsonAnswer(services.files.complete_upload(upload_id, body.part_ids, body.md5, creation, _upload_text))

    @router.post("/v1/uploads/{upload_id}/cancel", dependencies=[requires("train")])
    def cancel_upload(upload_id: str, services: ServicesDep) -> UploadObject:
        """Throw the parts away."""
        return UploadObject.of(services.files.cancel_upload(upload_id))

    return router


def _upload_text(view: UploadView) -> str:
    return UploadObject.of(view).model_dump_json()


def _chunks(stream: Any) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(MIB):
            yield chunk
