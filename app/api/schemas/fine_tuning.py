"""OpenAI's fine-tuning job and event, with our extras as further top-level fields."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from app.core.clock import unix

if TYPE_CHECKING:
    from app.registry.tables import CheckpointRow, JobEventRow, JobRow

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]


class JobError(BaseModel):
    code: str
    message: str
    param: str | None = None


class JobObject(BaseModel):
    """`hyperparameters` shows what was asked for until the trainer has resolved every `auto`, then the values used."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    status: Status
    error: JobError | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    metadata: dict[str, str] | None
    integrations: list[Any] = []
    # Ours.
    test_file: str | None
    suffix: str | None
    task: str
    peft: dict[str, Any]
    early_stopping: dict[str, Any] | None
    checkpoint: dict[str, Any]
    from_checkpoint: str | None
    dataset: dict[str, str]
    phase: str | None
    progress: dict[str, Any] | None
    attempt: int
    max_attempts: int
    started_at: int | None

    @classmethod
    def of(cls, row: "JobRow", organization: str) -> "JobObject":
        hyperparameters = dict(row.request["hyperparameters"])
        if row.resolved:
            hyperparameters |= {k: v for k, v in row.resolved["hyperparameters"].items() if k in hyperparameters}
        status: Any = row.phase if row.state == "running" and row.phase == "validating_files" else row.state
        phase = row.phase
        if row.state == "paused":  # OpenAI's clients know six values of `status`, and this is none of them
            status, phase = "queued", "paused"
        return cls(
            id=row.id,
            created_at=unix(row.created_at),
            finished_at=unix(row.finished_at),
            estimated_finish=unix(row.estimated_finish) if row.state == "running" else None,
            status=status,
            error=JobError.model_validate(row.error) if row.error else None,
            model=row.base_model,
            fine_tuned_model=row.fine_tuned_model,
            organization_id=organization,
            training_file=row.training_file,
            validation_file=row.validation_file,
            result_files=[row.result_file] if row.result_file else [],
            trained_tokens=row.trained_tokens if row.state == "succeeded" else None,
            seed=row.seed,
            hyperparameters=hyperparameters,
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            metadata=row.metadata_,
            test_file=row.test_file,
            suffix=row.suffix,
            task=row.task,
            peft=row.request["peft"],
            early_stopping=row.request["early_stopping"],
            checkpoint=row.request["checkpoint"],
            from_checkpoint=row.from_checkpoint,
            dataset=row.request["dataset"],
            phase=phase,
            progress=row.progress,
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            started_at=unix(row.started_at),
        )


class CheckpointObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int
    # Ours.
    reason: str
    bytes: int

    @classmethod
    def of(cls, row: "CheckpointRow") -> "CheckpointObject":
        return cls(
            id=row.id,
            created_at=unix(row.created_at),
            fine_tuned_model_checkpoint=row.ft_id,
            fine_tuning_job_id=row.job_id,
            metrics=row.metrics,
            step_number=row.step,
            reason=row.reason,
            bytes=row.bytes,
        )


class EventObject(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None

    @classmethod
    def of(cls, row: "JobEventRow") -> "EventObject":
        return cls(
            id=f"ftevent-{row.number:012d}",
            created_at=unix(row.created_at),
            level=row.level,
            message=row.message,
            type=row.type,
            data=row.data,
        )
