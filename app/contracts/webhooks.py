"""What a webhook endpoint may ask for: event types, and the bodies of `/v1/webhook_endpoints`.

Whether a URL may be called is not judged here: that depends on the operator's settings (`app/core/addresses.py`).
"""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, StringConstraints

from app.contracts.common import Strict

EventType = Literal[
    "batch.cancelled",
    "batch.completed",
    "batch.expired",
    "batch.failed",
    "fine_tuning.job.cancelled",
    "fine_tuning.job.failed",
    "fine_tuning.job.succeeded",
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


def _once(values: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(values))


EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=32), AfterValidator(_once)]
EndpointName = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
EndpointUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class WebhookCreate(Strict):
    event_types: EventTypes
    name: EndpointName
    url: EndpointUrl


class WebhookUpdate(Strict):
    """Fields left out stay as they are."""

    event_types: EventTypes | None = None
    name: EndpointName | None = None
    url: EndpointUrl | None = None


class WebhookRotate(Strict):
    keep_old_secret_active_for_24_hours: bool = False


class WebhookTest(Strict):
    event_type: EventType
