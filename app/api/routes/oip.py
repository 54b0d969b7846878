"""`/v2`: the Open Inference Protocol; what of Triton's extensions concerns the repository is in `oip_repository.py`.

Model ids hold `:`, `@` and `/`, so fixed suffixes are matched before `{model:path}`. Bodies are read raw: the clients
send no content type. Tensors and their bytes: `app/api/oip/`.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from fastapi import APIRouter, Header, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from app import __version__
from app.api.deps import CallerDep, ServicesDep, StickyKey, requires, servable
from app.api.hot import hot
from app.api.oip import body as wire
from app.api.schemas import oip as shapes
from app.contracts.oip import TEXT, Tensor, TensorSpec, Wanted, outputs_of
from app.core.errors import NotFound, Unavailable
from app.services.models import ServableVersion
from app.services.oip_repository import number, reference

router = APIRouter(tags=["open inference protocol"], prefix="/v2")

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
# Bytes from which a body is worth a thread: reading 64 KiB of JSON takes about 1 ms, in which nobody is answered.
_LARGE = 1 << 16

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {
                    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["I lost my card"]}],
                    "outputs": [{"name": "label"}, {"name": "score"}],
                },
            }
        },
    }
}
"""What the OpenAPI document says of a body that is read raw."""

ModelPath = Annotated[str, Path(max_length=256)]
JsonSize = Annotated[int | None, Header(ge=0)]
VersionPath = Annotated[str, Path(pattern="^[1-9][0-9]{0,8}$")]


# --- server ---


@router.get("/health/live")
async def server_live() -> shapes.Live:
    """This process answers."""
    return shapes.Live(live=True)


@router.get("/health/ready")
async def server_ready(services: ServicesDep) -> shapes.Ready:
    """Whether predictions can be made: Postgres, Valkey and an inference worker are there; 503 says what is not."""
    if missing := [c for c in await services.health.checks() if not c.ok and c.name != "trainer"]:
        raise Unavailable("; ".join(f"{check.name}: {check.detail}" for check in missing))
    return shapes.Ready(ready=True)


@router.get("", dependencies=[requires("read")])
async def server_metadata() -> shapes.ServerMetadata:
    """Name, version and the extensions of the protocol that are there."""
    return shapes.ServerMetadata(name="modelwright", version=__version__, extensions=EXTENSIONS)


# --- models ---


@router.get("/models/{model:path}/versions/{version}/ready", dependencies=[requires("read")])
async def version_ready(model: ModelPath, version: VersionPath, services: ServicesDep) -> shapes.ModelReady:
    """Whether this version would answer now."""
    return await _ready(services, reference(model, version))


@router.get("/models/{model:path}/ready", dependencies=[requires("read")])
async def model_ready(model: ModelPath, services: ServicesDep) -> shapes.ModelReady:
    """Whether the model would answer now."""
    return await _ready(services, model)


async def _ready(services: ServicesDep, name: str) -> shapes.ModelReady:
    await run_in_threadpool(services.models.resolve, name)
    await services.oip_repository.require_worker()
    return shapes.ModelReady(name=name, ready=True)


@router.get("/models/{model:path}/versions/{version}/config", dependencies=[requires("read")])
def version_config(model: ModelPath, version: VersionPath, services: ServicesDep) -> shapes.ModelConfig:
    """One version's configuration, in Triton's words."""
    return _config(services, reference(model, version))


@router.get("/models/{model:path}/config", dependencies=[requires("read")])
def model_config(model: ModelPath, services: ServicesDep) -> shapes.ModelConfig:
    """A model's configuration, in Triton's words: the dimension that counts inputs is left out of `dims`."""
    return _config(services, model)


def _config(services: ServicesDep, name: str) -> shapes.ModelConfig:
    version = services.models.resolve(name)

    def described(spec: TensorSpec) -> shapes.ConfigTensor:
        kind = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
        return shapes.ConfigTensor(name=spec.name, data_type=kind, dims=list(spec.shape[1:]))

    return shapes.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=services.oip_repository.max_batch_size(version.id),
        input=[described(TEXT)],
        output=[described(spec) for spec in outputs_of(version.serving).values()],
    )


@router.get("/models/{model:path}/versions/{version}", dependencies=[requires("read")])
def version_metadata(model: ModelPath, version: VersionPath, services: ServicesDep) -> shapes.ModelMetadata:
    """One version's inputs and outputs."""
    return _metadata(services, reference(model, version))


@dataclass(frozen=True)
class Call:
    """What an inference call brings beside the name."""

    request: Request
    services: ServicesDep
    caller: CallerDep
    json_size: int | None
    sticky: str | None


@router.post("/models/{model:path}/versions/{version}/infer", dependencies=[requires("predict")], openapi_extra=_BODY)
@hot
async def version_infer(
    *,
    model: ModelPath,
    version: VersionPath,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    inference_header_content_length: JsonSize = None,
    x_sticky_key: StickyKey = None,
) -> Response:
    """Predict with one version."""
    call = Call(request, services, caller, inference_header_content_length, x_sticky_key)
    return await _infer(reference(model, version), call)


@router.post("/models/{model:path}/infer", dependencies=[requires("predict")], openapi_extra=_BODY)
@hot
async def model_infer(
    *,
    model: ModelPath,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    inference_header_content_length: JsonSize = None,
    x_sticky_key: StickyKey = None,
) -> Response:
    """Predict: texts or token ids in, tensors out, each as JSON or as binary data."""
    return await _infer(model, Call(request, services, caller, inference_header_content_length, x_sticky_key))


async def _infer(name: str, call: Call) -> Response:
    services, headers = call.services, call.request.headers
    body, encoding = await call.request.body(), headers.get("content-encoding", "")
    limit = services.settings.max_request_bytes

    def read() -> tuple[shapes.InferRequest, list[Tensor]]:
        return wire.read(wire.decompress(body, encoding, limit), call.json_size)

    asked, inputs = await run_in_threadpool(read) if encoding or len(body) > _LARGE else read()
    timeout_ms = math.ceil(asked.parameters.timeout / 1000) or None
    version = await servable(services, name, timeout_ms, call.sticky)
    wanted = [Wanted(output.name, output.parameters.classification) for output in asked.outputs]
    # Triton's levels: 1 is the highest.
    urgent = asked.parameters.priority == 1
    outputs = await services.oip.infer(version, inputs, wanted, timeout_ms, caller=call.caller.key_id, urgent=urgent)
    as_binary = {output.name: output.parameters.binary_data for output in asked.outputs}

    def write() -> Response:
        pairs = [
            (tensor, asked.parameters.binary_data_output if flag is None else flag)
            for tensor in outputs
            for flag in (as_binary.get(tensor.name),)
        ]
        content, size = wire.write(_head(name, version, asked.id), pairs)
        content, packed = wire.compress(content, headers.get("accept-encoding", ""))
        answered = {"vary": "accept-encoding"}
        if size is not None:
            answered["inference-header-content-length"] = str(size)
        if packed is not None:
            answered["content-encoding"] = packed
        return Response(content, headers=answered, media_type="application/json" if size is None else _BINARY)

    return await run_in_threadpool(write) if sum(len(t.elements) for t in outputs) > _LARGE // 8 else write()


_BINARY = "application/octet-stream"


def _head(name: str, version: ServableVersion, request_id: str | None) -> dict[str, Any]:
    """The answer but its outputs."""
    head = {"model_name": name, "model_version": number(version), "id": request_id}
    return {key: value for key, value in head.items() if value is not None}


@router.get("/models/{model:path}", dependencies=[requires("read")])
def model_metadata(model: ModelPath, services: ServicesDep) -> shapes.ModelMetadata:
    """A model's versions, inputs and outputs."""
    return _metadata(services, model)


def _metadata(services: ServicesDep, name: str) -> shapes.ModelMetadata:
    version = services.models.resolve(name)

    def described(spec: TensorSpec) -> shapes.TensorMetadata:
        return shapes.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))

    return shapes.ModelMetadata(
        name=name,
        versions=services.oip_repository.versions(name, version),
        platform=PLATFORM,
        inputs=[described(TEXT)],
        outputs=[described(spec) for spec in outputs_of(version.serving).values()],
    )


def _not_here(request: Request) -> NoReturn:
    """Logging, tracing, shared memory: extensions that are not listed."""
    raise NotFound(
        f"there is no {request.method} {request.url.path[:256]}: GET /v2 lists the extensions", code="unknown_route"
    )


# Last, and without a scope: a POST to the path of a model would be 405, where clients expect 404.
router.add_route("/v2/{rest:path}", _not_here, methods=["GET", "POST"], include_in_schema=False)
