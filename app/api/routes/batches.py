"""`/v1/batches`: OpenAI's shapes. Which endpoints a batch may ask for is decided by which routes there are."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.api.deps import CreationDep, JsonAnswer, ServicesDep, requires
from app.api.schemas.batches import BatchObject
from app.api.schemas.common import ListOf
from app.contracts.batches import BatchRequest
from app.core.errors import InvalidRequest

router = APIRouter(tags=["batches"], prefix="/v1/batches")

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=64)]


@router.post("", dependencies=[requires("predict")], response_model=BatchObject)
def create_batch(body: BatchRequest, request: Request, services: ServicesDep, creation: CreationDep) -> Response:
    """Answer a file of requests within 24 hours, behind the calls of those who wait."""
    served = {getattr(route, "path", None) for router in request.app.state.routers for route in router.routes}
    if body.endpoint not in served:
        raise InvalidRequest(
            f"endpoint is {body.endpoint!r}, which this version does not serve: GET /docs lists what it does",
            code="endpoint_not_served",
            param="endpoint",
        )
    return JsonAnswer(services.batches.create(body, creation, lambda row: BatchObject.of(row).model_dump_json()))


@router.get("", dependencies=[requires("read")])
def list_batches(services: ServicesDep, after: After = None, limit: Limit = 20) -> ListOf[BatchObject]:
    """Batches, newest first."""
    rows, more = services.batches.page(after=after, limit=limit)
    return ListOf.of([BatchObject.of(r) for r in rows], more)


@router.get("/{batch_id}", dependencies=[requires("read")])
def retrieve_batch(batch_id: str, services: ServicesDep) -> BatchObject:
    """One batch, with its counts."""
    return BatchObject.of(services.batches.get(batch_id))


@router.post("/{batch_id}/cancel", dependencies=[requires("predict")])
def cancel_batch(batch_id: str, services: ServicesDep) -> BatchObject:
    """Cancel: what was answered is kept, within a few seconds."""
    return BatchObject.of(services.batches.cancel(batch_id))
