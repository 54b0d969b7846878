"""When a run saves itself, what of, and how it goes on: everything that decides the steps to come.

Resuming gives the weights that an unbroken run gives, bit for bit, on the same machine (`docs/decisions/0009`).
Imports no torch: the objective writes its own tensors.
"""

import json
import time
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from app.contracts.checkpoints import CheckpointPolicy, Reason
from app.contracts.training import Checkpointed, Resolved, TrainingSpec
from model_store import checkpoints as store
from workers.training.reporter import Reporter

POSITION = "position.json"
TABLE = "metrics.csv"


class Saved(Protocol):
    """What an objective owes a checkpoint."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Checkpoints:
    """One run's checkpoints. Without a folder it saves nothing."""

    def __init__(self, spec: TrainingSpec, resolved: Resolved, reporter: Reporter) -> None:
        self._policy: CheckpointPolicy = spec.checkpoint
        self._folder = Path(spec.checkpoint_folder) if spec.checkpoint_folder else None
        self._resume_from = Path(spec.resume_from) if spec.resume_from else None
        self._manifest = {"job_id": spec.job_id, "resolved": resolved.model_dump(mode="json", exclude={"kind"})}
        self._reporter = reporter
        self._tried_step, self._tried_at = 0, time.monotonic()
        self._sealed_step: int | None = None

    def due(self, step: int) -> bool:
        """Whether the policy wants one after `step`."""
        every, seconds = self._policy.every_steps, self._policy.every_seconds
        by_steps = every is not None and step - self._tried_step >= every
        return by_steps or (seconds is not None and time.monotonic() - self._tried_at >= seconds)

    def save(
        self, position: dict[str, Any], objective: Saved, *, epoch: float, reason: Reason, metrics: dict[str, float]
    ) -> None:
        """Seal one and say so. A disk that is full costs this checkpoint, not the job: the next one tries again."""
        step: int = position["steps"]
        if self._folder is None or step == self._sealed_step:
            return
        table, row = self._reporter.table_state()

        def fill(folder: Path) -> None:
            objective.save(folder)
            (folder / POSITION).write_text(json.dumps({**position, "row": row}))
            (folder / TABLE).write_bytes(table)

        try:
            sealed, manifest = store.write(
                self._folder, fill, step, epoch=epoch, reason=reason, metrics=metrics, **self._manifest
            )
        except (OSError, SafetensorError) as error:
            self._reporter.note(
                f"the checkpoint at step {step} could not be written ({error}): free space in the store; training "
                "goes on and the next one is tried in its turn",
                level="warn",
                step=step,
            )
        else:
            self._reporter.emit(Checkpointed(folder=sealed.name, digest=manifest.digest, step=step, reason=reason))
            self._sealed_step = step
        self._tried_step, self._tried_at = step, time.monotonic()

    def load(self, objective: Saved) -> dict[str, Any] | None:
        """Put everything back as it was saved and return the position; None when the run starts afresh."""
        if self._resume_from is None:
            return None
        objective.load(self._resume_from)
        position: dict[str, Any] = json.loads((self._resume_from / POSITION).read_text())
        self._reporter.restore_table((self._resume_from / TABLE).read_bytes(), position.pop("row"))
        self._tried_step = self._sealed_step = position["steps"]
        self._reporter.note(f"Resumed after step {position['steps']}", step=position["steps"])
        return position
