"""`POST /predict`: one shape for every task."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.contracts.common import ModelId, Strict


class PredictParameters(Strict):
    """Which of them a task takes: docs/api.md."""

    top_k: Annotated[int, Field(ge=1, le=5000)] | None = None
    return_all_scores: bool | None = None
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None


NO_PARAMETERS = PredictParameters()


class PredictBody(Strict):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "support-intents", "inputs": ["I lost my card"], "parameters": {"top_k": 3}},
                {"model": "people@production", "inputs": [{"tokens": ["Ada", "lives", "in", "London"]}]},
            ]
        },
    )

    model: ModelId
    # Counted and measured by the service, whose message names the entry; here only the wildest size is refused.
    inputs: Annotated[str | list[Any], Field(max_length=1_000_000)]
    # A factory: pydantic copies a default deeply for each call.
    parameters: PredictParameters = Field(default_factory=lambda: NO_PARAMETERS)


class Usage(BaseModel):
    inputs: int
    tokens: int


class PredictionObject(BaseModel):
    id: str
    object: Literal["prediction"] = "prediction"
    model: str
    task: str
    outputs: list[dict[str, Any]]
    usage: Usage
    batch_size: int
