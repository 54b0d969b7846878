"""`POST /predict`: the hot path. Nothing here blocks the event loop once name and key are cached."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Response

from app.api.deps import CallerDep, JsonAnswer, ServicesDep, StickyKey, requires, servable
from app.api.hot import hot
from app.api.schemas.predictions import NO_PARAMETERS, PredictBody, PredictionObject
from app.core.ids import new_id
from app.services.embeddings import floats, vectors

router = APIRouter(tags=["predictions"])


@router.post("/predict", dependencies=[requires("predict")], response_model=PredictionObject)
@hot
async def predict(
    body: PredictBody,
    services: ServicesDep,
    caller: CallerDep,
    x_request_timeout_ms: Annotated[int | None, Header(ge=1, le=600_000)] = None,
    x_sticky_key: StickyKey = None,
) -> Response:
    """Predict for one input or many. The answer holds one output an input, in order, and names the version."""
    version = await servable(services, body.model, x_request_timeout_ms, x_sticky_key)
    inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    given = body.parameters is not NO_PARAMETERS
    parameters = {name: value for name, value in body.parameters if value is not None} if given else {}
    found = await services.predictions.predict(version, inputs, parameters, x_request_timeout_ms, caller=caller.key_id)
    outputs = found.reply.outputs or []
    if version.serving.task == "sentence-embedding":
        outputs = [{"embedding": floats(vector)} for vector in vectors(found, body.parameters.dimensions)]
    answer = {
        "id": new_id("pred-"),
        "object": "prediction",
        "model": version.name,
        "task": version.serving.task,
        "outputs": outputs,
        "usage": {"inputs": len(outputs), "tokens": found.reply.tokens},
        "batch_size": found.reply.batch_size,
    }
    return JsonAnswer(msgspec.json.encode(answer))
