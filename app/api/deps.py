"""What routes ask for: the services wired in `app.main`, and the scope they declare."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from fastapi.params import Depends as DependsParam
from starlette.concurrency import run_in_threadpool

from app.auth.keys import Caller, KeyService
from app.contracts.scopes import Scope
from app.core.creation import Creation, fingerprint
from app.core.dataplane import DataPlane
from app.core.errors import Unavailable
from app.core.metrics import GatewayMetrics
from app.core.settings import Settings
from app.services.aliases import AliasService
from app.services.batches import BatchService
from app.services.checkpoints import CheckpointService
from app.services.embeddings import EmbeddingService
from app.services.files import FileService
from app.services.fine_tuning import FineTuningService
from app.services.health import HealthService
from app.services.models import ModelService, ServableVersion
from app.services.moderations import ModerationService
from app.services.oip import OipService
from app.services.oip_repository import OipRepositoryService
from app.services.predictions import PredictionService
from app.services.webhooks import WebhookService

# An export takes 6 to 10 s: the answer comes at most this much later.
_EXPORT_POLL_SECONDS = 0.25
_PREPARING = ("checkpoint_preparing", "model_preparing")


@dataclass(frozen=True)
class Services:
    """The use-cases, one an area."""

    settings: Settings
    keys: KeyService
    files: FileService
    fine_tuning: FineTuningService
    checkpoints: CheckpointService
    models: ModelService
    aliases: AliasService
    predictions: PredictionService
    embeddings: EmbeddingService
    moderations: ModerationService
    batches: BatchService
    oip: OipService
    oip_repository: OipRepositoryService
    webhooks: WebhookService
    health: HealthService
    plane: DataPlane
    metrics: GatewayMetrics


# Async though they wait for nothing: FastAPI hands what is not over to a thread, 0.1 ms a piece.
async def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def get_caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ServicesDep = Annotated[Services, Depends(get_services)]
CallerDep = Annotated[Caller, Depends(get_caller)]


async def _bare_creation(
    request: Request,
    caller: CallerDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern="^[ -~]+$",
            description="Makes the call safe to send again: the same key and body get the first answer, for 48 hours.",
        ),
    ] = None,
    x_stainless_retry_count: Annotated[str, Header(include_in_schema=False)] = "",
) -> Creation:
    # The stock client counts its retries here; a count that is no number says nothing.
    is_retry = re.fullmatch("0*[1-9][0-9]*", x_stainless_retry_count) is not None
    return Creation(caller.key_id, fingerprint(request.method, request.url.path), idempotency_key, is_retry)


BareCreationDep = Annotated[Creation, Depends(_bare_creation)]
"""A creating call whose route adds the body to the fingerprint: multipart boundaries differ between retries."""


async def _creation(request: Request, bare: BareCreationDep) -> Creation:
    return bare.of(await request.body())


CreationDep = Annotated[Creation, Depends(_creation)]
"""A creating call with a JSON body. Every POST that makes something hands one to its service."""


class JsonAnswer(Response):
    """An answer rendered already: it is sent byte for byte, and made in a third of the time."""

    def __init__(self, text: str | bytes) -> None:
        self.status_code, self.background = 200, None
        self.body = text.encode() if isinstance(text, str) else text
        size = str(len(self.body)).encode()
        self.raw_headers = [(b"content-type", b"application/json"), (b"content-length", size)]


StickyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=256, description="Calls with the same key get the same version of an alias."),
]


async def servable(
    services: Services, reference: str, timeout_ms: int | None, sticky: str | None = None
) -> ServableVersion:
    """The version that `reference` names.

    The first use of a checkpoint or an untrained base model waits, within the deadline, for its export.

    Of an alias with weights one version, the same for every call with the same `sticky` key.
    """
    version = services.models.cached(reference, sticky)
    until = time.monotonic() + (timeout_ms or services.settings.predict_timeout_ms) / 1000
    while version is None:
        try:
            version = await run_in_threadpool(services.models.resolve, reference, sticky)
        except Unavailable as exc:
            if exc.code not in _PREPARING or time.monotonic() > until:
                raise
            await asyncio.sleep(_EXPORT_POLL_SECONDS)
    return version


SCOPE_ATTRIBUTE = "modelwright_scope"


def requires(scope: Scope) -> DependsParam:
    """Declare a route's scope. `app.main` refuses to start with a route that declares none."""

    async def check(request: Request) -> None:
        request.state.caller.require(scope)

    setattr(check, SCOPE_ATTRIBUTE, scope)
    depends: DependsParam = Depends(check)
    return depends


def declared_scope(dependencies: list[Any]) -> Scope | None:
    """The scope among a route's dependencies."""
    calls: list[Callable[..., Any]] = [d.call if hasattr(d, "call") else d.dependency for d in dependencies]
    return next((getattr(c, SCOPE_ATTRIBUTE) for c in calls if hasattr(c, SCOPE_ATTRIBUTE)), None)
