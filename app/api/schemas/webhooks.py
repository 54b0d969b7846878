"""OpenAI's webhook endpoint, its test result and the list of event types. A secret is shown where it is made, once."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel

from app.contracts.webhooks import EVENT_TYPES, EventType
from app.core.clock import unix
from app.core.webhook_signing import hint

if TYPE_CHECKING:
    from app.registry.tables import WebhookEndpointRow


class WebhookEndpointObject(BaseModel):
    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str

    @classmethod
    def of(cls, row: "WebhookEndpointRow", **more: str) -> Self:
        return cls(
            id=row.id,
            created_at=unix(row.created_at),
            updated_at=unix(row.updated_at),
            name=row.name,
            url=row.url,
            event_types=row.event_types,
            signing_secret_hint=hint(row.secret),
            **more,
        )


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """The answer to `create` and `rotate_secret`, the only ones that hold the secret."""

    signing_secret: str

    @classmethod
    def reveal(cls, row: "WebhookEndpointRow") -> str:
        """The answer as JSON."""
        return cls.of(row, signing_secret=row.secret).model_dump_json()


class WebhookTestResult(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: EventType
    status_code: int
    success: Literal[True] = True
    """The receiver answered; `status_code` says what."""


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EventType] = list(EVENT_TYPES)
