"""`/v1/models`: the registry. Ids hold `:`, `@` and `/`, so fixed suffixes are matched before `{model:path}`."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.api.deps import ServicesDep, requires
from app.api.schemas.common import Deleted, ListOf
from app.api.schemas.models import ModelObject, VersionObject
from app.core.clock import unix

router = APIRouter(tags=["models"], prefix="/v1/models")

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=64)]
ModelPath = Annotated[str, Path(max_length=256)]

# The weights in pip packages are older than this service; a fixed day beats a wrong one.
_BASE_CREATED = 1_735_689_600  # 2025-01-01


@router.get("", dependencies=[requires("read")])
def list_models(services: ServicesDep) -> ListOf[ModelObject]:
    """Everything that can be named: models, their versions' `ft:` ids, and the base models to start from."""
    owner = services.settings.organization
    models, versions = services.models.everything()
    data = [ModelObject(id=m.name, created=unix(m.created_at), owned_by=owner, task=m.task) for m in models]
    data += [
        ModelObject(id=v.ft_id, created=unix(v.created_at), owned_by=owner, task=v.task, version=v.number)
        for v in versions
    ]
    data += [_base(name) for name in services.models.base_names()]
    return ListOf.of(data)


def _base(name: str) -> ModelObject:
    return ModelObject(id=name, created=_BASE_CREATED, owned_by="system")


@router.get("/{model:path}/versions", dependencies=[requires("read")])
def list_versions(
    model: ModelPath, services: ServicesDep, after: After = None, limit: Limit = 20
) -> ListOf[VersionObject]:
    """A model's versions, newest first, each with metrics, recipe and ONNX parity."""
    rows, more = services.models.versions(model, after=after, limit=limit)
    return ListOf.of([VersionObject.of(r) for r in rows], more)


@router.get("/{model:path}/versions/{number}", dependencies=[requires("read")])
def retrieve_version(
    model: ModelPath, number: Annotated[int, Path(ge=1, le=999_999_999)], services: ServicesDep
) -> VersionObject:
    """One version."""
    return VersionObject.of(services.models.version(f"{model}:{number}"))


@router.get("/{model:path}", dependencies=[requires("read")])
def retrieve_model(model: ModelPath, services: ServicesDep) -> ModelObject:
    """One name or id, in any form that `/predict` takes."""
    if services.models.is_base(model):
        return _base(model)
    row = services.models.version(model)
    return ModelObject(
        id=model,
        created=unix(row.created_at),
        owned_by=services.settings.organization,
        task=row.task,
        version=row.number,
    )


@router.delete("/{model:path}", dependencies=[requires("train")])
def delete_model(model: ModelPath, services: ServicesDep) -> Deleted:
    """Delete a version (`name:3` or an `ft:` id), or a model with all its versions (`name`)."""
    services.models.delete(model)
    return Deleted(id=model, object="model")
