"""The body of `POST /v1/fine_tuning/jobs`: OpenAI's fields and our extras, each bounded."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from app.contracts.checkpoints import CheckpointPolicy
from app.contracts.common import ColumnName, ModelId, ModelName, ObjectId, Strict
from app.contracts.hyperparameters import EarlyStopping, Hyperparameters
from app.contracts.tasks import TaskName
from app.contracts.tuners import FullConfig, Tuner


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("the NUL character cannot be stored: remove it")
    return value


MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_no_nul)]
MetadataValue = Annotated[str, StringConstraints(max_length=512), AfterValidator(_no_nul)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class SupervisedMethod(Strict):
    hyperparameters: Hyperparameters | None = None


class Method(Strict):
    """OpenAI's `method`: names the objective and carries its hyperparameters."""

    type: Literal["supervised"]
    supervised: SupervisedMethod | None = None


class FineTuningRequest(Strict):
    """A training job as the caller asks for it."""

    model: ModelId
    """Base model: a catalogue name, a trained version of this registry, or a folder the operator provides."""
    training_file: ObjectId
    validation_file: ObjectId | None = None
    test_file: ObjectId | None = None
    suffix: ModelName | None = None
    """Registry name of the result; default `<base>-<task>`."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """The older place for them; `method.supervised.hyperparameters` wins."""
    integrations: Annotated[list[dict[str, Any]], Field(max_length=0)] | None = None
    """Accepted empty, as clients send it; nothing is integrated."""
    task: TaskName | None = None
    """Default: the task whose columns the training file has."""
    peft: Tuner = Field(default_factory=FullConfig)
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy)
    """When the job saves itself, and how many of these it keeps."""
    from_checkpoint: ObjectId | None = None
    """Start from this checkpoint's weights, head included; `model`, `task` and `peft` as in the job that made it."""
    dataset: Annotated[dict[ColumnName, ColumnName], Field(max_length=8)] = Field(default_factory=dict)
    """field -> column, where the file names its columns otherwise."""

    def chosen_hyperparameters(self) -> Hyperparameters:
        inner = self.method.supervised.hyperparameters if self.method and self.method.supervised else None
        return inner or self.hyperparameters or Hyperparameters()
