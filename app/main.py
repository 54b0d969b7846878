"""`create_app()`: wiring only. Importing this file starts and reads nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from app import __version__
from app.api import errors
from app.api.deps import Services, declared_scope
from app.api.hot import HotRoutes
from app.api.inprocess import InProcess
from app.api.lane import FastLane
from app.api.middleware import DOCS_ASSETS, PUBLIC, Authentication, RequestContext
from app.api.refusals import STATE, EarlyRefusals
from app.api.routes import (
    aliases,
    batches,
    files,
    fine_tuning,
    models,
    oip,
    oip_repository,
    openai,
    predictions,
    system,
    webhooks,
)
from app.auth.keys import KeyService
from app.core.dataplane import DataPlane
from app.core.errors import Unavailable
from app.core.metrics import GatewayMetrics
from app.core.queue import Bell
from app.core.settings import Settings, get_settings
from app.core.statistics import Statistics
from app.registry.session import Database
from app.services.aliases import AliasService
from app.services.batch_run import BatchContext
from app.services.batch_runner import BatchRunner
from app.services.batches import BatchService
from app.services.checkpoints import CheckpointService
from app.services.embeddings import EmbeddingService
from app.services.exports import ExportService
from app.services.files import FileService
from app.services.fine_tuning import FineTuningService
from app.services.health import HealthService
from app.services.models import ModelService
from app.services.moderations import ModerationService
from app.services.oip import OipService
from app.services.oip_repository import OipRepositoryService
from app.services.predictions import PredictionService
from app.services.webhooks import WebhookService
from model_store.store import Store

_DESCRIPTION = """Fine-tune, compress and serve transformer models on your own machines.

The stock `openai` client works against this service: `OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=...)`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The gateway. Raises `Unavailable` when a URL is missing, `RuntimeError` when a route declares no scope."""
    settings = settings or get_settings()
    if not settings.database_url or not settings.redis_url:
        raise Unavailable(
            "the gateway needs MODELWRIGHT_DATABASE_URL and MODELWRIGHT_REDIS_URL; `modelwright up` sets them"
        )
    database, store = Database(settings.database_url), Store(settings.store_path)
    bell = Bell(settings.redis_url)
    metrics = GatewayMetrics()
    plane = DataPlane(settings.redis_url, settings, metrics.plane)
    checkpoints = CheckpointService(database)
    model_service = ModelService(database, checkpoints, ExportService(database, settings), settings)
    statistics = Statistics(settings.redis_url)
    prediction_service = PredictionService(plane, settings, metrics.versions, statistics)
    services = Services(
        settings=settings,
        keys=KeyService(database),
        files=FileService(database, store, settings),
        fine_tuning=FineTuningService(database, model_service, bell, settings),
        checkpoints=checkpoints,
        models=model_service,
        aliases=AliasService(database, model_service),
        predictions=prediction_service,
        embeddings=EmbeddingService(prediction_service, settings),
        moderations=ModerationService(prediction_service),
        batches=BatchService(database, settings),
        oip=OipService(prediction_service),
        oip_repository=OipRepositoryService(database, model_service, plane, statistics, settings),
        webhooks=WebhookService(database, settings),
        health=HealthService(database, plane),
        plane=plane,
        metrics=metrics,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        slots = asyncio.Semaphore(settings.batch_concurrency)
        runner = BatchRunner(BatchContext(database, store, settings, InProcess(app), plane.waiting, slots))
        await plane.start()
        runner.start()
        yield {STATE: EarlyRefusals(hot, services.keys, plane, metrics)}
        await runner.stop()
        await plane.stop()
        await statistics.stop()
        bell.close()
        database.dispose()

    # The documentation page brings its own scripts: a browser beside a closed network renders it too.
    app = FastAPIOffline(
        docs_url="/docs",
        static_url=DOCS_ASSETS,
        title="Modelwright",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_parameters={"persistAuthorization": True},
        telemetry={"tracing": False, "metrics": False, "logs": False},  # asking for it costs each call 0.005 ms
        # Says in the OpenAPI document what the middleware enforces.
        dependencies=[Depends(HTTPBearer(auto_error=False, description="An API key: `modelwright keys create`"))],
    )
    app.state.services = services
    routers = (
        files.build(settings),
        fine_tuning.router,
        aliases.router,
        models.router,
        predictions.router,
        openai.router,
        oip_repository.router,
        oip.router,
        batches.router,
        webhooks.router,
        system.router,
    )
    for router in routers:
        _refuse_undeclared(router)
        app.include_router(router)
    app.state.routers = routers
    hot = HotRoutes(routers)
    errors.install(app)
    # Inside the request context, so that its answer gets our envelope; routes of files raise the limit.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_request_bytes)
    app.add_middleware(FastLane, routes=hot, services=services)
    app.add_middleware(Authentication, keys=services.keys)
    app.add_middleware(RequestContext, metrics=metrics)
    return app


def _refuse_undeclared(router: APIRouter) -> None:
    """Deny by default: a route without a scope must not start."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.path not in PUBLIC and not declared_scope(route.dependencies):
            raise RuntimeError(f"{route.path} declares no scope: add dependencies=[requires(...)]")
