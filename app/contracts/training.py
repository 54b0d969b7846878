"""What a training child is told (`TrainingSpec`) and what it tells back (one JSON line a message).

The child reads files and writes files; it knows no database, no queue and no store. The worker parent
(`workers/lifecycle.py`) turns its messages into rows.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from app.contracts.checkpoints import CheckpointPolicy, Reason
from app.contracts.hyperparameters import EarlyStopping, Hyperparameters
from app.contracts.tasks import TaskName
from app.contracts.tuners import FullConfig, Tuner

Split = Literal["train", "validation", "test"]
FailureCode = Literal[
    "invalid_dataset",
    "diverged",
    "out_of_memory",
    "disk_full",
    "parity_failed",
    "base_model",
    "checkpoint_corrupt",
    "worker_error",
    "internal_error",
]
"""What a child or its parent can say of a failure; `workers/outcomes.py` adds what an exit code tells."""


class DatasetFile(BaseModel):
    """One file of rows on the worker's disk."""

    file_id: str
    path: str
    format: Literal["jsonl", "csv", "parquet"]
    sha256: str


class TrainingSpec(BaseModel):
    """Everything that decides the weights. Same spec, same machine: same weights."""

    job_id: str
    task: TaskName
    multi_label: bool = False
    base_model: str
    """Catalogue or registry name, for the record."""
    base_model_path: str
    """Folder with `config.json`, `model.safetensors` and `tokenizer.json`."""
    base_model_revision: str
    datasets: dict[Split, DatasetFile]
    columns: dict[str, str] = Field(default_factory=dict)
    """field -> column"""
    tuner: Tuner = Field(default_factory=FullConfig)
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)
    early_stopping: EarlyStopping | None = None
    seed: int
    output: str
    """Folder the child writes `artifact/` and `metrics.csv` into."""
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy)
    checkpoint_folder: str | None = None
    """Where checkpoints are sealed, `step-<n>` each; None: none are saved."""
    resume_from: str | None = None
    """A verified checkpoint of this job to go on from."""
    start_from: str | None = None
    """A verified checkpoint whose weights this run starts with; optimizer and schedule start afresh."""
    resolved: dict[str, Any] | None = None
    """The `Resolved` of an earlier attempt: recipe, threads, precision and attention kernel stay as they were."""
    batch_halvings: int = 0
    """Halve the batch and double accumulation so often: memory ran out before."""
    export_only: bool = False
    """Train nothing: export the weights of `start_from`."""


class Phase(BaseModel):
    """The child entered a phase; `total_steps` is known from `training` on."""

    kind: Literal["phase"] = "phase"
    phase: Literal["validating_files", "training", "evaluating", "exporting"]


class Resolved(BaseModel):
    """Every `auto` value as chosen, and the sizes it was chosen from."""

    kind: Literal["resolved"] = "resolved"
    hyperparameters: dict[str, Any]
    recipe: dict[str, Any]
    """As `workers.training.recipe.Recipe` holds it, before any halving of the batch."""
    rows: dict[Split, int]
    labels: list[str]
    total_steps: int
    device: str
    threads: int
    attention: str
    """The attention kernel, as transformers names it."""


class Step(BaseModel):
    """One optimizer step."""

    kind: Literal["step"] = "step"
    step: int
    epoch: float
    train_loss: float
    learning_rate: float
    tokens: int
    """Tokens trained on so far, padding left out."""


class Evaluation(BaseModel):
    """Metrics of a split after `step`."""

    kind: Literal["evaluation"] = "evaluation"
    step: int
    epoch: float
    split: Split
    metrics: dict[str, float]


class Checkpointed(BaseModel):
    """A checkpoint lies sealed under `checkpoint_folder`."""

    kind: Literal["checkpointed"] = "checkpointed"
    folder: str
    """Its name there."""
    digest: str
    step: int
    reason: Reason


class Note(BaseModel):
    """A sentence for the job's events."""

    kind: Literal["note"] = "note"
    level: Literal["info", "warn", "error"] = "info"
    message: str
    data: dict[str, Any] | None = None


class Finished(BaseModel):
    """The artifact is complete under `TrainingSpec.output`."""

    kind: Literal["finished"] = "finished"
    metrics: dict[str, Any]
    """`{"validation": {...}, "test": {...}}`, per-class or per-type figures nested under `report`."""
    datasets: dict[str, Any]
    """Per split: rows, duplicates, overlap with train."""
    parity: dict[str, float]
    """`max_abs_logit_diff`, `label_agreement`, `rows`, `tolerance`."""
    trained_tokens: int
    train_seconds: float
    samples_per_second: float


class Failed(BaseModel):
    """The child could not go on; it exits after saying this."""

    kind: Literal["failed"] = "failed"
    code: FailureCode
    message: str
    param: str | None = None


ChildMessage = Annotated[
    Phase | Resolved | Step | Evaluation | Checkpointed | Note | Finished | Failed, Field(discriminator="kind")
]
CHILD_MESSAGE: TypeAdapter[ChildMessage] = TypeAdapter(ChildMessage)
