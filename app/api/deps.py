"""What routes ask for: the services wired in `app.main`, and the scope they declare."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.params import Depends as DependsParam

from app.auth.keys import Caller, KeyService
from app.contracts.scopes import Scope
from app.core.dataplane import DataPlane
from app.core.metrics import GatewayMetrics
from app.core.settings import Settings
from app.services.files import FileService
from app.services.fine_tuning import FineTuningService
from app.services.health import HealthService
from app.services.models import ModelService
from app.services.predictions import PredictionService


@dataclass(frozen=True)
class Services:
    """The use-cases, one an area."""

    settings: Settings
    keys: KeyService
    files: FileService
    fine_tuning: FineTuningService
    models: ModelService
    predictions: PredictionService
    health: HealthService
    plane: DataPlane
    metrics: GatewayMetrics


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def get_caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ServicesDep = Annotated[Services, Depends(get_services)]
CallerDep = Annotated[Caller, Depends(get_caller)]

SCOPE_ATTRIBUTE = "modelwright_scope"


def requires(scope: Scope) -> DependsParam:
    """Declare a route's scope. `app.main` refuses to start with a route that declares none."""

    def check(request: Request) -> None:
        request.state.caller.require(scope)

    setattr(check, SCOPE_ATTRIBUTE, scope)
    depends: DependsParam = Depends(check)
    return depends


def declared_scope(dependencies: list[Any]) -> str | None:
    """The scope among a route's dependencies."""
    calls: list[Callable[..., Any]] = [d.call if hasattr(d, "call") else d.dependency for d in dependencies]
    return next((getattr(c, SCOPE_ATTRIBUTE) for c in calls if hasattr(c, SCOPE_ATTRIBUTE)), None)
