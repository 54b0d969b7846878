"""Checkpoints: how often a job saves them, and the manifest that seals each one."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.contracts.common import Strict
from app.contracts.manifest import Sealed

Reason = Literal["interval", "epoch", "stop"]
"""Why it was saved; `stop` is a pause or a worker's shutdown."""


class CheckpointPolicy(Strict):
    """When a job saves. An epoch's end always does; so does a pause."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps; None: by time alone."""
    every_seconds: Annotated[float, Field(ge=1.0, le=86_400.0)] | None = None
    """Seconds of training; None: by steps alone, or MODELWRIGHT_CHECKPOINT_SECONDS when neither is given."""
    keep: int = Field(3, ge=1, le=100)
    """The newest so many are kept, never fewer than two while the job is unfinished."""


class CheckpointManifest(Sealed):
    """One checkpoint: the state of a training run between two steps."""

    format: int = 1
    job_id: str
    step: int
    epoch: float
    reason: Reason
    metrics: dict[str, float]
    """Loss of the last step, and the newest validation metrics as `valid_<name>`."""
    resolved: dict[str, Any]
    """The recipe it was made with: a resumed run must use the same."""
