"""The loop with an objective whose losses and validation scores are written down."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from app.contracts.hyperparameters import EarlyStopping, Hyperparameters
from app.contracts.training import CHILD_MESSAGE, Evaluation, Note, Step
from workers.training.batching import Batch
from workers.training.errors import Stopped, TrainingFailed
from workers.training.loop import Trained, train
from workers.training.recipe import TaskDefaults, TunerRates, resolve
from workers.training.reporter import Reporter

BATCH = Batch(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), tokens=6)


class Counting:
    """An objective whose only state is how many steps it made."""

    learning_rate = 0.5

    def __init__(self, loss: Callable[[int], float]) -> None:
        self.count = torch.zeros(())
        self.loss = loss
        self.micro_batches: list[int] = []

    def step(self, micro_batches: Sequence[Batch]) -> Tensor:
        self.count += 1
        self.micro_batches.append(len(micro_batches))
        return torch.tensor(self.loss(int(self.count)))

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.count = state["count"]


class Run:
    """One run over `batches` batches an epoch, one validation score an epoch."""

    def __init__(self, scores: Sequence[float] | None, batches: int = 4, accumulation: int = 1, **options: Any) -> None:
        epochs = options.pop("epochs", len(scores or []))
        self.objective = Counting(options.pop("loss", lambda step: 1.0 / step))
        self.stream = io.StringIO()
        self.reporter = Reporter(self.stream)
        waiting = iter(scores or [])
        metric = options.pop("metric", "accuracy")
        self.recipe = resolve(
            Hyperparameters(n_epochs=epochs, batch_size=2, gradient_accumulation_steps=accumulation),
            rates=TunerRates(1.0, 1.0),
            task=TaskDefaults(),
            rows=2 * batches,
            length=8,
            hidden_size=8,
            can_mask=True,
            bf16_is_faster=False,
            validation_split=0.0,
            test_split=0.0,
        )
        self.arguments: dict[str, Any] = {
            "objective": self.objective,
            "recipe": self.recipe,
            "micro_batches": lambda _: [lambda: BATCH] * batches,
            "validate": None if scores is None else lambda: {metric: next(waiting), "other": 0.0},
            "metric": metric,
            "early_stopping": None,
            "reporter": self.reporter,
            **options,
        }

    def train(self) -> Trained:
        return train(**self.arguments)

    def told(self, kind: type) -> list[Any]:
        messages = [CHILD_MESSAGE.validate_json(line) for line in self.stream.getvalue().splitlines()]
        return [m for m in messages if isinstance(m, kind)]


def test_the_best_epoch_is_restored() -> None:
    run = Run([0.1, 0.9, 0.5])
    assert run.train().best_epoch == 2
    assert run.objective.count == 8


def test_of_equal_epochs_the_later_one_is_kept() -> None:
    assert Run([0.1, 0.9, 0.9, 0.5]).train().best_epoch == 3


def test_a_loss_is_better_when_lower() -> None:
    assert Run([3.0, 1.0, 2.0], metric="loss").train().best_epoch == 2


def test_without_validation_the_last_epoch_stays() -> None:
    run = Run(None, epochs=3)
    assert run.train().best_epoch is None
    assert run.objective.count == 12


def test_early_stopping_counts_epochs_without_gain() -> None:
    run = Run([0.5, 0.4, 0.6, 0.6, 0.6, 0.9], early_stopping=EarlyStopping(patience=2))
    trained = run.train()
    assert (trained.steps, trained.best_epoch) == (20, 5)
    (note,) = run.told(Note)
    assert note.message == "stopped early after epoch 5: best accuracy was in epoch 5"


def test_small_gains_do_not_reset_patience() -> None:
    run = Run([0.50, 0.51, 0.52, 0.9], early_stopping=EarlyStopping(patience=2, threshold=0.05))
    assert run.train().steps == 12


def test_gains_since_the_mark_add_up() -> None:
    run = Run([0.50, 0.54, 0.58, 0.6, 0.61], early_stopping=EarlyStopping(patience=3, threshold=0.05))
    assert run.train().steps == 20


def test_micro_batches_are_grouped_and_the_rest_is_a_step() -> None:
    run = Run([0.1, 0.2], batches=5, accumulation=2)
    trained = run.train()
    assert run.objective.micro_batches == [2, 2, 1] * 2
    assert (trained.steps, trained.rows, trained.tokens) == (6, 20, 60)
    assert trained.steps == run.recipe.total_steps


def test_every_step_is_told_once_and_in_order() -> None:
    run = Run([0.1, 0.2])
    run.train()
    steps = run.told(Step)
    assert [s.step for s in steps] == list(range(1, 9))
    assert [s.epoch for s in steps] == [0.25 * n for n in range(1, 9)]
    assert steps[3].train_loss == pytest.approx(0.25)
    assert [m.step for m in run.told(Evaluation)] == [4, 8]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_job_with_advice(bad: float) -> None:
    run = Run([0.1], loss=lambda step: bad if step == 3 else 1.0)
    with pytest.raises(TrainingFailed, match=r"at step 3 with learning rate 0\.5: lower learning_rate") as caught:
        run.train()
    assert caught.value.code == "diverged"


def test_a_stop_is_obeyed_at_the_next_step() -> None:
    run = Run([0.1])

    def build() -> Batch:
        run.reporter.stop()
        return BATCH

    run.arguments["micro_batches"] = lambda _: [build] * 4
    with pytest.raises(Stopped):
        run.train()
    assert run.objective.count == 1
