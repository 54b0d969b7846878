"""The one training loop: epochs, evaluation, the best epoch kept, early stopping, progress.

Knows objectives, batches and metrics by their interfaces only: nothing here asks which task or tuner it
serves.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from app.contracts.hyperparameters import EarlyStopping
from app.contracts.training import Step
from workers.training.batching import Batch
from workers.training.errors import TrainingFailed
from workers.training.recipe import Recipe
from workers.training.reporter import Reporter

FLUSH_SECONDS = 0.2
"""Losses are read from the device this often at most: reading one waits for the device to finish."""


class Objective(Protocol):
    """Owns one optimizer step and the state that it changes."""

    @property
    def learning_rate(self) -> float: ...

    def step(self, micro_batches: Sequence[Batch]) -> Tensor: ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: dict[str, Tensor]) -> None: ...


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
    micro_batches: Callable[[int], Sequence[Callable[[], Batch]]],
    validate: Callable[[], dict[str, float]] | None,
    metric: str,
    early_stopping: EarlyStopping | None,
    reporter: Reporter,
) -> Trained:
    """Train for the recipe's epochs and leave the best epoch's weights in the objective.

    `micro_batches(epoch)` gives that epoch's batches, each built when it is called; `metric` (higher is
    better, but for `loss`) picks the best epoch, the later of equals. Raises `TrainingFailed` (`diverged`)
    when the loss is not finite, `Stopped` when the parent asked.
    """
    progress = _Progress(objective, recipe, reporter)
    best = _Best(metric, early_stopping)
    for epoch in range(1, recipe.n_epochs + 1):
        batches = micro_batches(epoch)
        for start in range(0, len(batches), recipe.gradient_accumulation_steps):
            reporter.check()
            progress.step([build() for build in batches[start : start + recipe.gradient_accumulation_steps]])
        progress.flush()
        if validate is None:
            continue
        progress.pause()
        metrics = validate()
        reporter.evaluation(progress.steps, float(epoch), "validation", metrics)
        if best.improved(metrics, epoch):
            best.state = objective.state()
        if best.exhausted(epoch):
            reporter.note(f"stopped early after epoch {epoch}: best {metric} was in epoch {best.epoch}", epoch=epoch)
            break
    if best.state is not None:
        objective.restore(best.state)
    return Trained(progress.steps, progress.rows, progress.tokens, progress.pause(), best.epoch)


class _Progress:
    """Counts steps, tokens and training seconds, and reports losses a moment late."""

    def __init__(self, objective: Objective, recipe: Recipe, reporter: Reporter) -> None:
        self._objective, self._recipe, self._reporter = objective, recipe, reporter
        self._pending: list[tuple[int, Tensor, float, int]] = []
        self._flushed = 0.0
        self._seconds = 0.0
        self._running_since: float | None = None
        self.steps = self.rows = self.tokens = 0

    def step(self, batches: Sequence[Batch]) -> None:
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
        self.state: dict[str, Tensor] | None = None

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
