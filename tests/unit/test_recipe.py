"""The rules behind every `auto`."""

from typing import Any

import pytest

from app.contracts.hyperparameters import Hyperparameters
from workers.training.recipe import Recipe, TaskDefaults, TunerRates, max_length, resolve
from workers.training.tuners import TUNERS

FULL = TunerRates(body=1.0, head=10.0)
PLAIN = TaskDefaults()


def resolved(
    rows: int = 15_000,
    hidden_size: int = 384,
    rates: TunerRates = FULL,
    task: TaskDefaults = PLAIN,
    **given: Any,
) -> Recipe:
    return resolve(
        Hyperparameters(**given),
        rates=rates,
        task=task,
        rows=rows,
        length=128,
        hidden_size=hidden_size,
        can_mask=True,
        bf16_is_faster=True,
        validation_split=0.1,
        test_split=0.0,
    )


def test_a_resolved_recipe_resolves_to_itself() -> None:
    recipe = resolved(learning_rate_multiplier=2.0, lr_scheduler_type="cosine", warmup_ratio=0.2)
    assert resolved(**recipe.hyperparameters()) == recipe


def test_given_values_are_kept() -> None:
    given: dict[str, Any] = {
        "n_epochs": 7,
        "batch_size": 5,
        "learning_rate": 0.3,
        "warmup_steps": 11,
        "weight_decay": 0.5,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.0,
        "label_smoothing_factor": 0.25,
        "mixed_precision": "no",
        "class_weights": "balanced",
    }
    recipe = resolved(**given)
    assert given.items() <= recipe.hyperparameters().items()


@pytest.mark.parametrize(
    ("rows", "epochs"), [(10, 30), (200, 22), (999, 10), (4999, 6), (15_100, 5), (50_000, 3), (1_000_000, 3)]
)
def test_epochs_by_rows(rows: int, epochs: int) -> None:
    assert resolved(rows=rows).n_epochs == epochs


def test_tokens_are_masked_from_1000_rows_on() -> None:
    task = TaskDefaults(word_dropout=0.1)
    assert [resolved(rows=rows, task=task).word_dropout for rows in (999, 1000)] == [0.0, 0.1]
    assert resolved(rows=1000, task=task, word_dropout=0.0).word_dropout == 0.0
    assert resolved(rows=10, word_dropout=0.3).word_dropout == 0.3


def test_more_rows_never_mean_more_epochs() -> None:
    epochs = [resolved(rows=rows).n_epochs for rows in (1000, 5000, 20_000, 100_000)]
    assert epochs == sorted(epochs, reverse=True)


def test_learning_rate_falls_with_the_models_width() -> None:
    assert resolved(hidden_size=384).learning_rate == pytest.approx(2e-4)
    assert resolved(hidden_size=768).learning_rate == pytest.approx(5e-5)
    assert resolved(hidden_size=32).learning_rate == 5e-4


def test_a_task_has_its_own_wishes() -> None:
    recipe = resolved(task=TaskDefaults(rate=1.5, label_smoothing=0.1))
    assert recipe.learning_rate == pytest.approx(3e-4)
    assert recipe.label_smoothing_factor == 0.1
    assert resolved(task=TaskDefaults(label_smoothing=0.1), label_smoothing_factor=0.0).label_smoothing_factor == 0.0


def test_learning_rate_multiplier_scales_the_automatic_rate() -> None:
    assert resolved(learning_rate_multiplier=0.5).learning_rate == pytest.approx(1e-4)


def test_adapters_learn_faster_than_full_weights() -> None:
    rates = {name: resolved(rates=tuner.rates).learning_rate for name, tuner in TUNERS.items()}
    assert rates["lora"] > 2 * rates["full"]


def test_bf16_only_where_it_is_faster_or_asked_for() -> None:
    assert resolved().mixed_precision == "bf16"
    assert resolved(mixed_precision="no").mixed_precision == "no"


def test_steps_count_accumulation_and_a_last_short_batch() -> None:
    recipe = resolved(rows=101, batch_size=10, gradient_accumulation_steps=4, n_epochs=2)
    assert (recipe.steps_per_epoch, recipe.total_steps) == (3, 6)


def test_a_rate_warms_up_and_ends_near_zero() -> None:
    recipe = resolved(rows=320, batch_size=32, n_epochs=10, warmup_steps=10)
    rates = [recipe.rate(step) for step in range(recipe.total_steps)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1.0), ("constant_with_warmup", 1.0), ("cosine", 0.0), ("linear", 0.0)]
)
def test_schedules(schedule: str, last: float) -> None:
    recipe = resolved(rows=3200, batch_size=32, n_epochs=10, lr_scheduler_type=schedule)
    assert recipe.rate(recipe.total_steps - 1) == pytest.approx(last, abs=0.01)
    assert recipe.rate(0) == (1.0 if schedule == "constant" else pytest.approx(1 / 101))


@pytest.mark.parametrize(
    ("longest", "limit", "expected"), [(9, 512, 128), (130, 512, 136), (5000, 8192, 512), (300, 256, 256), (9, 64, 64)]
)
def test_max_length_follows_the_longest_row(longest: int, limit: int, expected: int) -> None:
    assert max_length(Hyperparameters(), [4, longest], limit) == expected


def test_a_given_max_length_is_cut_to_the_models_limit() -> None:
    assert max_length(Hyperparameters(max_length=300), [5], 256) == 256
    assert max_length(Hyperparameters(max_length=20), [500], 256) == 20
