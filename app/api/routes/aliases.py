"""`/v1/models/{model}/aliases`: movable names, their shares, their history. Included before `routes/models.py`, whose
`{model:path}` takes every path."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response

from app.api.deps import CallerDep, CreationDep, JsonAnswer, ServicesDep, requires
from app.api.schemas.aliases import AliasChangeObject, AliasObject
from app.api.schemas.common import Deleted, ListOf
from app.contracts.aliases import AliasSet
from app.contracts.common import NAME_PATTERN

router = APIRouter(tags=["models"], prefix="/v1/models/{model:path}/aliases")

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=64)]
ModelPath = Annotated[str, Path(max_length=256)]
AliasName = Annotated[str, Path(pattern=NAME_PATTERN)]


@router.get("", dependencies=[requires("read")])
def list_aliases(model: ModelPath, services: ServicesDep) -> ListOf[AliasObject]:
    """Where a model's aliases point."""
    return ListOf.of([AliasObject.of(a) for a in services.aliases.all(model)])


@router.put("/{alias}", dependencies=[requires("train")])
def set_alias(
    model: ModelPath, alias: AliasName, body: AliasSet, services: ServicesDep, caller: CallerDep
) -> AliasObject:
    """Point an alias at a version, or at several with their shares; every gateway follows within two seconds."""
    return AliasObject.of(services.aliases.set(model, alias, body, caller.key_id))


@router.delete("/{alias}", dependencies=[requires("train")])
def drop_alias(model: ModelPath, alias: AliasName, services: ServicesDep, caller: CallerDep) -> Deleted:
    """Remove an alias; the version stays."""
    services.aliases.drop(model, alias, caller.key_id)
    return Deleted(id=alias, object="model.alias")


@router.post("/{alias}/rollback", dependencies=[requires("train")], response_model=AliasObject)
def roll_back_alias(model: ModelPath, alias: AliasName, services: ServicesDep, creation: CreationDep) -> Response:
    """Undo the last change of an alias that was not undone yet."""
    return JsonAnswer(services.aliases.rollback(model, alias, creation, AliasObject.render))


@router.get("/{alias}/history", dependencies=[requires("read")])
def list_alias_changes(
    model: ModelPath, alias: AliasName, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListOf[AliasChangeObject]:
    """Every change of an alias, newest first, with the key that made it."""
    changes, more = services.aliases.history(model, alias, after=after, limit=limit)
    return ListOf.of([AliasChangeObject.of(c) for c in changes], more)
