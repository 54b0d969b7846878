"""Webhook endpoints: registered, changed, their secrets rotated, tried out. Delivery itself: `workers/webhooks.py`."""

from collections.abc import Callable
from datetime import timedelta

from app.contracts.webhooks import EventType, WebhookCreate, WebhookUpdate
from app.core import outbound
from app.core.addresses import Reach
from app.core.creation import Creation
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import new_id
from app.core.settings import Settings
from app.core.webhook_signing import event_body, new_secret, signed_headers
from app.registry.creations import CreationRepository
from app.registry.session import Database
from app.registry.tables import WebhookEndpointRow
from app.registry.webhooks import WebhookRepository, valid_secrets

MAX_ENDPOINTS = 100
_OVERLAP = timedelta(hours=24)


class WebhookService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._reach = database, Reach(settings.webhook_allow)

    def create(self, request: WebhookCreate, creation: Creation, render: Callable[[WebhookEndpointRow], str]) -> str:
        """Raises `InvalidRequest` for a URL that may not be called, and for the 101st endpoint."""
        self._reach.target(request.url)
        row = WebhookEndpointRow(
            id=new_id("we_"),
            name=request.name,
            url=request.url,
            event_types=list(request.event_types),
            secret=new_secret(),
        )
        with self._database.unit_of_work() as session:
            creations, webhooks = CreationRepository(session), WebhookRepository(session)
            creations.check(creation)
            if webhooks.count() >= MAX_ENDPOINTS:
                raise InvalidRequest(
                    f"there are {MAX_ENDPOINTS} webhook endpoints, which is the limit: delete one that is not needed",
                    code="too_many_webhook_endpoints",
                )
            webhooks.add(row)
            return creations.remember(creation, render(row))

    def get(self, endpoint_id: str) -> WebhookEndpointRow:
        with self._database.unit_of_work() as session:
            return _found(WebhookRepository(session).get(endpoint_id), endpoint_id)

    def page(self, *, after: str | None, limit: int) -> tuple[list[WebhookEndpointRow], bool]:
        with self._database.unit_of_work() as session:
            return WebhookRepository(session).page(after=after, limit=limit)

    def update(self, endpoint_id: str, request: WebhookUpdate) -> WebhookEndpointRow:
        """Deliveries that wait go to the new URL. `updated_at` moves only when something changed."""
        if request.url is not None:
            self._reach.target(request.url)
        with self._database.unit_of_work() as session:
            webhooks = WebhookRepository(session)
            row = _found(webhooks.get(endpoint_id, lock=True), endpoint_id)
            for field, value in request.model_dump(exclude_none=True).items():
                if getattr(row, field) != value:
                    setattr(row, field, value)
                    row.updated_at = webhooks.now()
        return row

    def delete(self, endpoint_id: str) -> None:
        """What still waits for the endpoint is not sent."""
        with self._database.unit_of_work() as session:
            webhooks = WebhookRepository(session)
            webhooks.delete(_found(webhooks.get(endpoint_id, lock=True), endpoint_id))

    def rotate_secret(
        self, endpoint_id: str, keep_old: bool, creation: Creation, render: Callable[[WebhookEndpointRow], str]
    ) -> str:
        """A new secret; `keep_old` lets the one before sign too for 24 hours.

        A creation like any other: rotated once more by a client's retry, the secret that receivers know would be lost.
        """
        with self._database.unit_of_work() as session:
            creations, webhooks = CreationRepository(session), WebhookRepository(session)
            creations.check(creation)
            row = _found(webhooks.get(endpoint_id, lock=True), endpoint_id)
            now = webhooks.now()
            row.previous_secret, row.previous_until = (row.secret, now + _OVERLAP) if keep_old else (None, None)
            row.secret, row.updated_at = new_secret(), now
            return creations.remember(creation, render(row))

    def test(self, endpoint_id: str, event_type: EventType) -> int:
        """Send a sample event from this process, once; returns the receiver's status.

        Raises `InvalidRequest` when nobody answers: a client must not try again by itself.
        """
        with self._database.unit_of_work() as session:
            webhooks = WebhookRepository(session)
            row, now = _found(webhooks.get(endpoint_id), endpoint_id), webhooks.now()
        event_id = new_id("evt_")
        sample = "batch_sample" if event_type.startswith("batch.") else "ftjob-sample"
        body = event_body(event_id, event_type, sample, now)
        return outbound.post(row.url, body, signed_headers(event_id, body, valid_secrets(row, now), now), self._reach)


def _found(row: WebhookEndpointRow | None, endpoint_id: str) -> WebhookEndpointRow:
    if row is None:
        raise NotFound(
            f"no webhook endpoint {endpoint_id[:64]!r}: GET /v1/webhook_endpoints lists them",
            param="webhook_endpoint_id",
        )
    return row
