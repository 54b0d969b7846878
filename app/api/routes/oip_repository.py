"""`/v2/repository` and the statistics of `/v2`: Triton's extensions about what there is and what it has answered.

`/v2/models/stats` is no model: this router goes before `oip.py`'s.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from app.api.deps import CallerDep, ServicesDep, requires, servable
from app.api.oip import body as wire
from app.api.routes.oip import ModelPath, VersionPath
from app.api.schemas import oip as shapes
from app.core.errors import InvalidRequest
from app.services.oip_repository import reference

router = APIRouter(tags=["open inference protocol"], prefix="/v2")


@router.get("/models/stats", dependencies=[requires("read")])
async def all_statistics(services: ServicesDep) -> shapes.Statistics:
    """What every version has answered, over all gateways and routes."""
    return await _statistics(services, None)


@router.get("/models/{model:path}/versions/{version}/stats", dependencies=[requires("read")])
async def version_statistics(model: ModelPath, version: VersionPath, services: ServicesDep) -> shapes.Statistics:
    """What one version has answered."""
    return await _statistics(services, reference(model, version))


@router.get("/models/{model:path}/stats", dependencies=[requires("read")])
async def model_statistics(model: ModelPath, services: ServicesDep) -> shapes.Statistics:
    """What a model's versions have answered."""
    return await _statistics(services, model)


async def _statistics(services: ServicesDep, name: str | None) -> shapes.Statistics:
    rows = await run_in_threadpool(services.oip_repository.counted, name)
    found = []
    for row, counts in await services.oip_repository.statistics(rows):
        runs = max(round(counts.executions), 1 if counts.inferences else 0)
        found.append(
            shapes.ModelStatistics(
                name=row.model.name,
                version=str(row.number or ""),
                last_inference=counts.last_ms,
                inference_count=counts.inferences,
                execution_count=runs,
                inference_stats=shapes.InferenceStatistics(
                    success=shapes.Duration(count=counts.successes, ns=counts.success_ns),
                    fail=shapes.Duration(count=counts.failures, ns=counts.failure_ns),
                ),
            )
        )
    return shapes.Statistics(model_stats=found)


@router.post("/repository/index", dependencies=[requires("read")])
async def repository_index(request: Request, services: ServicesDep) -> list[shapes.IndexEntry]:
    """Every version and its state; with `{"ready": true}` only those that answer."""
    asked = wire.parsed(shapes.IndexRequest, await request.body())
    entries = await run_in_threadpool(services.oip_repository.index)
    return [
        shapes.IndexEntry(
            name=entry.name,
            version=entry.version,
            state="READY" if entry.loaded else "UNAVAILABLE",
            reason="" if entry.loaded else "unloaded",
        )
        for entry in entries
        if entry.loaded or not asked.ready
    ]


@router.post("/repository/models/{model:path}/load", dependencies=[requires("train")])
async def load_model(request: Request, model: ModelPath, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Keep the version in memory and answer once a worker has run it. `config` takes batching members alone."""
    asked = wire.parsed(shapes.LoadRequest, await request.body())
    rows = _overrides(asked.parameters).max_batch_size
    await run_in_threadpool(services.oip_repository.set_loaded, model, loaded=True, max_batch_size=rows)
    await services.oip_repository.warm(await servable(services, model, None), caller.key_id)
    return {}


def _overrides(parameters: shapes.LoadParameters) -> shapes.BatchingOverrides:
    if files := [name for name in parameters.model_extra or {} if name.startswith("file:")]:
        raise InvalidRequest(
            f"{files[0][:80]!r} is a file of a model; versions are made by jobs alone: POST /v1/fine_tuning/jobs",
            param="parameters",
        )
    try:
        return shapes.BatchingOverrides.model_validate_json(parameters.config or "{}")
    except ValidationError as exc:
        found = exc.errors(include_url=False)[0]
        where = ".".join(map(str, found["loc"])) or "config"
        raise InvalidRequest(
            f"config: {where}: {found['msg']}; a load takes {', '.join(shapes.BatchingOverrides.model_fields)}",
            param="parameters.config",
        ) from exc


@router.post("/repository/models/{model:path}/unload", dependencies=[requires("train")])
async def unload_model(request: Request, model: ModelPath, services: ServicesDep) -> dict[str, Any]:
    """Take the version out of memory; it answers nothing until it is loaded again."""
    wire.parsed(shapes.UnloadRequest, await request.body())
    await run_in_threadpool(services.oip_repository.set_loaded, model, loaded=False)
    return {}
