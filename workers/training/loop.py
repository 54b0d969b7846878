"""The one training loop: epochs, evaluation, the best epoch kept, early stopping, checkpoints, progress.

Knows objectives, batches and metrics by their interfaces only: nothing here asks which task or tuner it
serves, and nothing here needs torch.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat

from app.contracts.checkpoints import Reason
from app.contracts.hyperparameters import EarlyStopping
from app.contracts.training import Step
from workers.training.checkpoints import Checkpoints
from workers.training.errors import Stopped, TrainingFailed
from workers.training.recipe import Recipe
from workers.training.reporter import Reporter

if TYPE_CHECKING:
    from workers.training.batching import Batch

FLUSH_SECONDS = 0.2
"""Losses are read from the device this often at most: reading one waits for the device to finish."""

Steps = Sequence[Sequence[Callable[[], "Batch"]]]
"""An epoch's optimizer steps; each is its micro-batches, built when called."""


class Objective(Protocol):
    """Owns one optimizer step and all state that steps change."""

    @property
    def learning_rate(self) -> float: ...

    def step(self, micro_batches: "Sequence[Batch]") -> SupportsFloat:
        """Update once; the loss may still be on its way from the device."""

    def keep(self) -> None:
        """Remember the present weights as the best so far."""

    def restore(self) -> None:
        """Go back to the weights that `keep` remembered last; without any, do nothing."""

    def save(self, folder: Path) -> None:
        """Write everything that later steps depend on, the kept weights included."""

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What the loop measured."""

    steps: int
    rows: int
    tokens: int
    seconds: float
    """Training alone, evaluations left out."""
    best_epoch: int | None


def train(
    *,
    objective: Objective,
    recipe: Recipe,
    steps: Callable[[int], Steps],
    validate: Callable[[], dict[str, float]] | None,
    metric: str,
    early_stopping: EarlyStopping | None,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> Trained:
    """Train for the recipe's epochs and leave the best epoch's weights in the objective.

    `steps(epoch)` gives that epoch's steps, the same each time it is asked; `metric` (higher is better, but for
    `loss`) picks the best epoch, the later of equals. Raises `TrainingFailed` (`diverged`) when the loss is not
    finite, `Stopped`, after a checkpoint, when the parent asked.
    """
    run = _Run(objective, recipe, reporter, checkpoints, _Best(metric, early_stopping))
    run.resume()
    try:
        while run.epoch <= recipe.n_epochs and not run.best.exhausted(run.epoch - 1):
            run.through(steps(run.epoch))
            if validate is not None:
                run.judge(validate())
            run.epoch, run.done = run.epoch + 1, 0
            run.save("epoch")
    except Stopped:
        run.save("stop")
        raise
    if run.epoch <= recipe.n_epochs:
        reporter.note(
            f"stopped early after epoch {run.epoch - 1}: best {metric} was in epoch {run.best.epoch}",
            epoch=run.epoch - 1,
        )
    objective.restore()
    progress = run.progress
    return Trained(progress.steps, progress.rows, progress.tokens, progress.pause(), run.best.epoch)


class _Run:
    """Where the run stands: `done` steps of `epoch` are behind it."""

    def __init__(
        self, objective: Objective, recipe: Recipe, reporter: Reporter, checkpoints: Checkpoints, best: "_Best"
    ) -> None:
        self._objective, self._reporter, self._checkpoints = objective, reporter, checkpoints
        self.progress = _Progress(objective, recipe, reporter)
        self.best = best
        self.epoch, self.done = 1, 0
        self._metrics: dict[str, float] = {}

    def through(self, steps: Steps) -> None:
        """The rest of the epoch."""
        while self.done < len(steps):
            self._reporter.check()
            self.progress.step([build() for build in steps[self.done]])
            self.done += 1
            # The last step's checkpoint follows its evaluation.
            if self.done < len(steps) and self._checkpoints.due(self.progress.steps):
                self.save("interval")
        self.progress.flush()
        self.progress.pause()

    def judge(self, metrics: dict[str, float]) -> None:
        """Take the epoch's validation metrics."""
        self._reporter.evaluation(self.progress.steps, float(self.epoch), "validation", metrics)
        self._metrics = {f"valid_{name}": value for name, value in metrics.items()}
        if self.best.improved(metrics, self.epoch):
            self._objective.keep()

    def save(self, reason: Reason) -> None:
        """Losses are read first: a state whose loss is not finite is never saved."""
        self.progress.flush()
        self.progress.pause()
        position = {
            "epoch": self.epoch,
            "done": self.done,
            "best": self.best.position(),
            "metrics": self._metrics,
            **self.progress.position(),
        }
        self._checkpoints.save(
            position,
            self._objective,
            epoch=self.progress.epoch,
            reason=reason,
            metrics={"train_loss": self.progress.loss, **self._metrics},
        )

    def resume(self) -> None:
        """Go on from a checkpoint when there is one."""
        position = self._checkpoints.load(self._objective)
        if position is not None:
            self.epoch, self.done = position["epoch"], position["done"]
            self._metrics = position["metrics"]
            self.best.restore(position["best"])
            self.progress.restore(position)


class _Progress:
    """Counts steps, tokens and training seconds, and reports losses a moment late."""

    def __init__(self, objective: Objective, recipe: Recipe, reporter: Reporter) -> None:
        self._objective, self._recipe, self._reporter = objective, recipe, reporter
        self._pending: list[tuple[int, SupportsFloat, float, int]] = []
        self._flushed = 0.0
        self._seconds = 0.0
        self._running_since: float | None = None
        self.steps = self.rows = self.tokens = 0
        self.loss = 0.0
        """Of the newest step that was read."""

    @property
    def epoch(self) -> float:
        return self.steps / self._recipe.steps_per_epoch

    def position(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {
            "steps": self.steps,
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": self._seconds,
            "loss": self.loss,
        }

    def restore(self, position: dict[str, Any]) -> None:
        self.steps, self.rows, self.tokens = position["steps"], position["rows"], position["tokens"]
        self._seconds, self.loss = position["seconds"], position["loss"]

    def step(self, batches: "Sequence[Batch]") -> None:
        self._running_since = self._running_since or time.perf_counter()
        rate = self._objective.learning_rate
        loss = self._objective.step(batches)
        self.steps += 1
        self.rows += sum(len(batch.input_ids) for batch in batches)
        self.tokens += sum(batch.tokens for batch in batches)
        self._pending.append((self.steps, loss, rate, self.tokens))
        if time.perf_counter() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        for step, loss, rate, tokens in self._pending:
            value = float(loss)
            if not math.isfinite(value):
                raise TrainingFailed(
                    "diverged",
                    f"the training loss became {value} at step {step} with learning rate {rate:.3g}: lower "
                    "learning_rate, raise warmup_ratio, or keep max_grad_norm at 1.0",
                    param="hyperparameters.learning_rate",
                )
            self.loss = value
            epoch = step / self._recipe.steps_per_epoch
            self._reporter.step(Step(step=step, epoch=epoch, train_loss=value, learning_rate=rate, tokens=tokens))
        self._pending.clear()
        self._flushed = time.perf_counter()

    def pause(self) -> float:
        """Stop the clock until the next step; returns the seconds trained so far."""
        if self._running_since is not None:
            self._seconds += time.perf_counter() - self._running_since
            self._running_since = None
        return self._seconds


class _Best:
    """The best epoch so far, and whether patience ran out."""

    def __init__(self, metric: str, early_stopping: EarlyStopping | None) -> None:
        self._metric, self._stopping = metric, early_stopping
        self._score = -math.inf
        self._mark, self._mark_epoch = -math.inf, 0
        self.epoch: int | None = None

    def position(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {"score": self._score, "mark": self._mark, "mark_epoch": self._mark_epoch, "epoch": self.epoch}

    def restore(self, position: dict[str, Any]) -> None:
        self._score, self._mark = position["score"], position["mark"]
        self._mark_epoch, self.epoch = position["mark_epoch"], position["epoch"]

    def improved(self, metrics: dict[str, float], epoch: int) -> bool:
        score = -metrics["loss"] if self._metric == "loss" else metrics[self._metric]
        threshold = self._stopping.threshold if self._stopping else 0.0
        if score > self._mark + threshold:
            self._mark, self._mark_epoch = score, epoch
        if self.epoch is not None and score < self._score:
            return False
        self._score, self.epoch = score, epoch
        return True

    def exhausted(self, epoch: int) -> bool:
        return self._stopping is not None and epoch - self._mark_epoch >= self._stopping.patience
