"""`/v1/webhook_endpoints`: OpenAI's shapes. All of it needs `admin`: an endpoint hears of every job."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.deps import CreationDep, JsonAnswer, ServicesDep, requires
from app.api.schemas.common import Deleted, ListOf
from app.api.schemas.webhooks import (
    EventTypeList,
    WebhookEndpointObject,
    WebhookEndpointWithSecret,
    WebhookTestResult,
)
from app.contracts.webhooks import WebhookCreate, WebhookRotate, WebhookTest, WebhookUpdate

router = APIRouter(tags=["webhooks"])

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=64)]


@router.post("/v1/webhook_endpoints", dependencies=[requires("admin")], response_model=WebhookEndpointWithSecret)
def create_webhook_endpoint(body: WebhookCreate, services: ServicesDep, creation: CreationDep) -> Response:
    """Register a URL; the answer alone shows the signing secret."""
    return JsonAnswer(services.webhooks.create(body, creation, WebhookEndpointWithSecret.reveal))


@router.get("/v1/webhook_endpoints", dependencies=[requires("admin")])
def list_webhook_endpoints(
    services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListOf[WebhookEndpointObject]:
    """All endpoints, newest first."""
    rows, more = services.webhooks.page(after=after, limit=limit)
    return ListOf.of([WebhookEndpointObject.of(r) for r in rows], more)


@router.get("/v1/webhook_endpoints/{webhook_endpoint_id}", dependencies=[requires("admin")])
def retrieve_webhook_endpoint(webhook_endpoint_id: str, services: ServicesDep) -> WebhookEndpointObject:
    """One endpoint."""
    return WebhookEndpointObject.of(services.webhooks.get(webhook_endpoint_id))


@router.post("/v1/webhook_endpoints/{webhook_endpoint_id}", dependencies=[requires("admin")])
def update_webhook_endpoint(
    webhook_endpoint_id: str, body: WebhookUpdate, services: ServicesDep
) -> WebhookEndpointObject:
    """Change name, URL or event types."""
    return WebhookEndpointObject.of(services.webhooks.update(webhook_endpoint_id, body))


@router.delete("/v1/webhook_endpoints/{webhook_endpoint_id}", dependencies=[requires("admin")])
def delete_webhook_endpoint(webhook_endpoint_id: str, services: ServicesDep) -> Deleted:
    """Delete an endpoint; what waits for it is not sent."""
    services.webhooks.delete(webhook_endpoint_id)
    return Deleted(id=webhook_endpoint_id, object="webhook_endpoint.deleted")


@router.post(
    "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
    dependencies=[requires("admin")],
    response_model=WebhookEndpointWithSecret,
)
def rotate_webhook_secret(
    webhook_endpoint_id: str, services: ServicesDep, creation: CreationDep, body: WebhookRotate | None = None
) -> Response:
    """A new signing secret; the old one stops at once, or signs too for 24 hours."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    return JsonAnswer(
        services.webhooks.rotate_secret(webhook_endpoint_id, keep_old, creation, WebhookEndpointWithSecret.reveal)
    )


@router.post("/v1/webhook_endpoints/{webhook_endpoint_id}/test", dependencies=[requires("admin")])
def test_webhook_endpoint(webhook_endpoint_id: str, body: WebhookTest, services: ServicesDep) -> WebhookTestResult:
    """Send one sample event now and say what the receiver answered."""
    status = services.webhooks.test(webhook_endpoint_id, body.event_type)
    return WebhookTestResult(webhook_endpoint_id=webhook_endpoint_id, event_type=body.event_type, status_code=status)


@router.get("/v1/webhook_event_types", dependencies=[requires("admin")])
def list_webhook_event_types() -> EventTypeList:
    """The event types that an endpoint may ask for."""
    return EventTypeList()
