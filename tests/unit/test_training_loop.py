"""The loop with an objective whose losses and validation scores are written down."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.contracts.hyperparameters import EarlyStopping, Hyperparameters
from app.contracts.training import CHILD_MESSAGE, Checkpointed, Evaluation, Note, Resolved, Step, TrainingSpec
from workers.training.batching import Batch
from workers.training.checkpoints import Checkpoints
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
        self.kept: Tensor | None = None
        self.loss = loss
        self.micro_batches: list[int] = []

    def step(self, micro_batches: Sequence[Batch]) -> Tensor:
        self.count += 1
        self.micro_batches.append(len(micro_batches))
        return torch.tensor(self.loss(int(self.count)))

    def keep(self) -> None:
        self.kept = self.count.clone()

    def restore(self) -> None:
        if self.kept is not None:
            self.count = self.kept

    def save(self, folder: Path) -> None:
        kept = {} if self.kept is None else {"kept": self.kept}
        save_file({"count": self.count, **kept}, folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        state = load_file(folder / "state.safetensors")
        self.count, self.kept = state["count"], state.get("kept")


def checkpoints(reporter: Reporter, **spec: Any) -> Checkpoints:
    made = TrainingSpec(
        job_id="ftjob-1",
        task="text-classification",
        base_model="toy",
        base_model_path="-",
        base_model_revision="0",
        datasets={},
        seed=1,
        output="-",
        **spec,
    )
    resolved = Resolved(
        hyperparameters={},
        recipe={},
        rows={},
        labels=[],
        total_steps=0,
        device="cpu",
        threads=1,
        attention="sdpa",
    )
    return Checkpoints(made, resolved, reporter)


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
            Hyperparameters(n_epochs=epochs, batch_size=2),
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
            "steps": lambda _: [[lambda: BATCH] * accumulation] * batches,
            "validate": None if scores is None else lambda: {metric: next(waiting), "other": 0.0},
            "metric": metric,
            "early_stopping": None,
            "checkpoints": checkpoints(self.reporter, **options.pop("saving", {})),
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


def test_a_step_counts_the_rows_of_all_its_micro_batches() -> None:
    run = Run([0.1, 0.2], batches=5, accumulation=2)
    trained = run.train()
    assert run.objective.micro_batches == [2] * 10
    assert (trained.steps, trained.rows, trained.tokens) == (10, 40, 120)


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

    run.arguments["steps"] = lambda _: [[build]] * 4
    with pytest.raises(Stopped):
        run.train()
    assert run.objective.count == 1


SCORES = [0.5, 0.7, 0.6, 0.9]


@pytest.mark.parametrize("stop_after", range(1, 16))
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(tmp_path: Path, stop_after: int) -> None:
    whole = Run(SCORES)
    expected = whole.train()
    folder = str(tmp_path / "checkpoints")

    def losses(run: Run) -> list[float]:
        return [s.train_loss for s in run.told(Step)]

    first = Run(SCORES, saving={"checkpoint_folder": folder})
    built = 0

    def build() -> Batch:
        nonlocal built
        built += 1
        if built == stop_after:
            first.reporter.stop()
        return BATCH

    first.arguments["steps"] = lambda _: [[build]] * 4
    with pytest.raises(Stopped):
        first.train()
    saved = first.told(Checkpointed)[-1]
    assert saved.step == stop_after
    scores = SCORES[len(first.told(Evaluation)) :]
    second = Run(scores, epochs=4, saving={"resume_from": str(Path(folder) / saved.folder)})
    trained = second.train()
    assert (trained.steps, trained.rows, trained.tokens, trained.best_epoch) == (
        expected.steps,
        expected.rows,
        expected.tokens,
        expected.best_epoch,
    )
    assert second.objective.count == whole.objective.count
    assert losses(first) + losses(second) == losses(whole)


def test_checkpoints_come_every_so_many_steps_and_at_each_epochs_end(tmp_path: Path) -> None:
    run = Run([0.1, 0.2], batches=5, saving={"checkpoint_folder": str(tmp_path), "checkpoint": {"every_steps": 2}})
    run.train()
    assert [(c.step, c.reason) for c in run.told(Checkpointed)] == [
        (2, "interval"),
        (4, "interval"),
        (5, "epoch"),
        (7, "interval"),
        (9, "interval"),
        (10, "epoch"),
    ]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Run([0.1], saving={"checkpoint_folder": str(tmp_path / "file" / "below")})
    assert run.train().steps == 4
    (note,) = run.told(Note)
    assert note.level == "warn" and "could not be written" in note.message


def test_patience_that_ran_out_before_a_stop_is_not_given_again(tmp_path: Path) -> None:
    run = Run([0.9, 0.1, 0.1], early_stopping=EarlyStopping(patience=1), saving={"checkpoint_folder": str(tmp_path)})
    assert run.train().steps == 8
    last = run.told(Checkpointed)[-1]
    again = Run(
        [0.9], epochs=3, early_stopping=EarlyStopping(patience=1), saving={"resume_from": str(tmp_path / last.folder)}
    )
    assert again.train().steps == 8
    assert again.objective.count == 4


def test_a_stop_right_after_a_checkpoint_saves_nothing_twice(tmp_path: Path) -> None:
    run = Run([0.1], saving={"checkpoint_folder": str(tmp_path), "checkpoint": {"every_steps": 1}})

    def build() -> Batch:
        run.reporter.stop()
        return BATCH

    run.arguments["steps"] = lambda _: [[build]] * 4
    with pytest.raises(Stopped):
        run.train()
    assert [(c.step, c.reason) for c in run.told(Checkpointed)] == [(1, "interval")]
