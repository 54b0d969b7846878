"""What a child has said and the database does not know yet; survives a database outage. Knows no SQL."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from app.contracts.training import Checkpointed, Evaluation, Failed, Finished, Note, Phase, Resolved, Step

# Export and parity after the last step, measured 6-10 s for MiniLM; keeps the ETA from promising zero.
_EXPORT_SECONDS = 10.0


@dataclass
class Ledger:
    """One attempt's. `take` what is to be written; `put_back` what could not be."""

    values: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[Checkpointed] = field(default_factory=list)
    """Sealed in the store, not yet verified here."""
    finished: Finished | None = None
    failed: Failed | None = None
    total_steps: int = 0
    saved_step: int = 0
    """Of the newest checkpoint that this attempt verified, or started from."""
    progressed: bool = False
    """Whether this attempt verified a checkpoint of its own."""
    heard: float = field(default_factory=time.monotonic)
    _first_step: tuple[int, float] | None = None

    def note(self, level: str, message: str, data: dict[str, Any] | None = None, kind: str = "message") -> None:
        self.events.append({"level": level, "type": kind, "message": message, "data": data})

    def add(self, message: Any) -> None:
        """Take one message of the child."""
        self.heard = time.monotonic()
        match message:
            case Phase(phase=phase):
                self.values["phase"] = phase
                self.note("info", f"Phase: {phase}")
            case Resolved():
                self.total_steps = message.total_steps
                self.values["resolved"] = message.model_dump(mode="json", exclude={"kind"})
                self.note(
                    "info",
                    f"Training {message.total_steps} steps on {message.device}",
                    {k: v for k, v in self.values["resolved"].items() if k != "recipe"},
                )
            case Step():
                self._step(message)
            case Evaluation():
                data = {"step": message.step, "epoch": message.epoch, "split": message.split, **message.metrics}
                shown = ", ".join(f"{k} {v:.4f}" for k, v in list(message.metrics.items())[:4])
                self.note("info", f"Step {message.step}: {message.split} {shown}", data, "metrics")
                self.progress |= {"metrics": {message.split: message.metrics}}
            case Checkpointed():
                self.checkpoints.append(message)
            case Note():
                self.note(message.level, message.message, message.data)
            case Finished():
                self.finished = message
            case Failed():
                self.failed = message

    def _step(self, step: Step) -> None:
        total = max(self.total_steps, step.step)
        data = step.model_dump(exclude={"kind"}) | {"total_steps": total}
        self.note("info", f"Step {step.step}/{total}: training loss={step.train_loss:.4f}", data, "metrics")
        now = time.monotonic()
        first, since = self._first_step = self._first_step or (step.step - 1, now - 0.1)
        # Steps of this attempt alone: an earlier one may have run on another machine.
        left = (now - since) / (step.step - first) * (total - step.step) + _EXPORT_SECONDS
        self.progress |= data | {"percent": round(99.0 * step.step / total, 1), "eta_seconds": round(left)}
        self.values["estimated_finish"] = datetime.now(UTC) + timedelta(seconds=left)
        self.values["trained_tokens"] = step.tokens

    def take(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What to write now. Give it back with `put_back` when the write fails."""
        values, events = self.values, self.events
        self.values, self.events = {}, []
        return values | {"progress": dict(self.progress)} if self.progress else values, events

    def put_back(self, values: dict[str, Any], events: list[dict[str, Any]]) -> None:
        self.values, self.events = values | self.values, events + self.events
