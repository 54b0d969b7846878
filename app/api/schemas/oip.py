"""Bodies of the Open Inference Protocol. Unknown members are refused, unknown parameters ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.contracts.common import Strict

TensorName = Annotated[str, Field(min_length=1, max_length=64)]
Datatypes = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
]  # fmt: skip


class Parameters(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class RequestParameters(Parameters):
    binary_data_output: bool = False
    timeout: Annotated[int, Field(ge=0, le=600_000_000)] = 0
    """Microseconds; 0 takes the usual deadline."""
    priority: Annotated[int, Field(ge=0, lt=2**64)] = 0


class InputParameters(Parameters):
    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class OutputParameters(Parameters):
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0, le=5000)] = 0


class RequestInput(Strict):
    name: TensorName
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8)]
    datatype: Datatypes
    parameters: InputParameters = InputParameters()
    # Counted and measured when its shape is known; here only the wildest size is refused.
    data: Annotated[list[Any], Field(max_length=10_000_000)] | None = None


class RequestOutput(Strict):
    name: TensorName
    parameters: OutputParameters = OutputParameters()


class InferRequest(Strict):
    model_name: Annotated[str, Field(max_length=256)] | None = None
    """Triton's own examples send it; the path decides."""
    id: Annotated[str, Field(max_length=1024)] | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[RequestInput], Field(min_length=1, max_length=8)]
    outputs: Annotated[tuple[RequestOutput, ...], Field(max_length=8)] = ()


class IndexRequest(Strict):
    ready: bool = False


class LoadParameters(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)  # to be told of files

    config: Annotated[str, Field(max_length=65_536)] | None = None


class LoadRequest(Strict):
    parameters: LoadParameters = LoadParameters()


class UnloadRequest(Strict):
    parameters: Annotated[dict[str, Any], Field(max_length=64)] | None = None


class BatchingOverrides(Strict):
    """`config` of a load: all that may be said of a version that is made already."""

    name: str | None = None
    platform: str | None = None
    backend: str | None = None
    max_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    dynamic_batching: Annotated[dict[str, Any], Field(max_length=16)] | None = None


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    name: str
    ready: bool


class ConfigTensor(BaseModel):
    name: str
    data_type: str
    dims: list[int]


class ModelConfig(BaseModel):
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    dynamic_batching: dict[str, Any] = {}


class IndexEntry(BaseModel):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Duration(BaseModel):
    count: int
    ns: int


class InferenceStatistics(BaseModel):
    success: Duration
    fail: Duration


class ModelStatistics(BaseModel):
    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics


class Statistics(BaseModel):
    model_stats: list[ModelStatistics]
