"""`POST /predict`: the hot path. Nothing here blocks the event loop once name and key are cached."""

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse

from app.api.deps import ServicesDep, requires, servable
from app.api.schemas.predictions import PredictBody, PredictionObject, Usage
from app.core.ids import new_id

router = APIRouter(tags=["predictions"])


@router.post("/predict", dependencies=[requires("predict")], response_model=PredictionObject)
async def predict(
    body: PredictBody,
    services: ServicesDep,
    x_request_timeout_ms: Annotated[int | None, Header(ge=1, le=600_000)] = None,
) -> JSONResponse:
    """Predict for one input or many. The answer holds one output an input, in order, and names the version."""
    version = await servable(services, body.model, x_request_timeout_ms)
    inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    parameters = body.parameters.model_dump(exclude_none=True)
    found = await services.predictions.predict(version, inputs, parameters, x_request_timeout_ms)
    outputs = found.reply.outputs or []
    services.metrics.predicted_inputs.labels(version.name).inc(len(outputs))
    answer = PredictionObject.model_construct(
        id=new_id("pred-"),
        model=version.name,
        task=version.serving.task,
        outputs=outputs,
        usage=Usage(inputs=len(outputs), tokens=found.reply.tokens),
        batch_size=found.reply.batch_size,
    )
    return JSONResponse(answer.model_dump())
