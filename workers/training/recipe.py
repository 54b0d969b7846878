"""Every `auto` value by rule: a pure function of sizes and device, so that the same job always gets the same
recipe.

Knows numbers only: no rows, no tensors. `docs/training.md` lists the rules with the measurements behind them.
A resolved recipe, given back as hyperparameters, resolves to itself: that is how a version is reproduced.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from app.contracts.hyperparameters import Hyperparameters

MAX_AUTO_LENGTH = 512
MIN_AUTO_LENGTH = 128
"""Texts at serving time may be longer than those seen in training; short batches cost nothing."""
EPOCHS_BY_ROWS = ((1000, 10), (5000, 6), (50_000, 5))
"""(fewer rows than, epochs); 3 from the last on."""
MIN_AUTO_STEPS, MAX_AUTO_EPOCHS = 150, 30
"""Tiny data sets get more epochs: a random head is not trained after 40 steps."""
SMALL_DATASET = 1000
AUTO_BATCH_SIZE = 32
BASE_LEARNING_RATE = 2e-4
"""AdamW, hidden size 384, all parameters; falls with the square of the hidden size (BERT-base, 768: 5e-5)."""
BASE_HIDDEN_SIZE = 384
OPTIMIZER_RATE = {"adamw": 1.0, "adam": 1.0, "sgd": 100.0, "adagrad": 5.0}


@dataclass(frozen=True, slots=True)
class TunerRates:
    """How a tuner's learning rates relate to those of full fine-tuning."""

    body: float
    """Factor on the learning rate of the base model's parameters."""
    head: float
    """The head's learning rate as a multiple of the body's: it starts from random values."""


@dataclass(frozen=True, slots=True)
class TaskDefaults:
    """What a task wants otherwise than others."""

    rate: float = 1.0
    """Factor on the automatic learning rate."""
    label_smoothing: float = 0.0
    word_dropout: float = 0.0
    """From 1,000 rows on; below, it was measured to cost accuracy."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Concrete hyperparameters, under the names of `Hyperparameters`."""

    n_epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    optim: Literal["adamw", "adam", "sgd", "adagrad"]
    gradient_accumulation_steps: int
    max_grad_norm: float
    max_length: int
    label_smoothing_factor: float
    word_dropout: float
    mixed_precision: Literal["no", "bf16"]
    class_weights: Literal["none", "balanced"]
    validation_split: float
    test_split: float
    steps_per_epoch: int
    head_learning_rate_factor: float

    @property
    def total_steps(self) -> int:
        return self.n_epochs * self.steps_per_epoch

    def hyperparameters(self) -> dict[str, Any]:
        """As `Hyperparameters` takes them."""
        derived = {"steps_per_epoch", "head_learning_rate_factor"}
        return {name: value for name, value in asdict(self).items() if name not in derived}

    def halved(self, times: int) -> "Recipe":
        """The batch in 2^times parts, accumulated: the same rows in a step, less memory at once."""
        parts = min(2**times, self.batch_size)
        return replace(
            self,
            batch_size=math.ceil(self.batch_size / parts),
            gradient_accumulation_steps=self.gradient_accumulation_steps * parts,
        )

    def rate(self, step: int) -> float:
        """Learning rate of `step` (from 0) as a fraction of the peak: linear warm-up, then the schedule."""
        if self.lr_scheduler_type == "constant":
            return 1.0
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.lr_scheduler_type == "constant_with_warmup":
            return 1.0
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done)) if self.lr_scheduler_type == "cosine" else 1 - done


def max_length(hp: Hyperparameters, lengths: Sequence[int], limit: int) -> int:
    """Tokens a row may have. `auto`: the longest training row rounded up to 8, between 128 and 512.

    `lengths` are the training rows' token counts, special tokens included; `limit` is the base model's own.
    """
    if hp.max_length != "auto":
        return min(hp.max_length, limit)
    longest = math.ceil(max(lengths) / 8) * 8
    return min(max(longest, MIN_AUTO_LENGTH), MAX_AUTO_LENGTH, limit)


def auto_epochs(rows: int, steps_per_epoch: int) -> int:
    """10 under 1,000 rows, 6 under 5,000, 5 under 50,000, else 3; but at least 150 steps, in at most 30 epochs."""
    epochs = next((epochs for fewer_than, epochs in EPOCHS_BY_ROWS if rows < fewer_than), 3)
    return max(epochs, min(MAX_AUTO_EPOCHS, math.ceil(MIN_AUTO_STEPS / steps_per_epoch)))


def auto_learning_rate(optim: str, hidden_size: int, rates: TunerRates) -> float:
    """2e-4 at hidden size 384, falling with its square, at most 5e-4; times the tuner's and the
    optimizer's factor."""
    base = min(5e-4, BASE_LEARNING_RATE * (BASE_HIDDEN_SIZE / hidden_size) ** 2)
    return base * rates.body * OPTIMIZER_RATE[optim]


def resolve(
    hp: Hyperparameters,
    *,
    rates: TunerRates,
    task: TaskDefaults,
    rows: int,
    length: int,
    hidden_size: int,
    can_mask: bool,
    bf16_is_faster: bool,
    validation_split: float,
    test_split: float,
) -> Recipe:
    """The concrete recipe.

    `rows` counts training rows as the model sees them (windows, for tagging); `length` is `max_length`'s
    answer; the two splits are the fractions really held out.
    """
    batch_size = AUTO_BATCH_SIZE if hp.batch_size == "auto" else hp.batch_size
    steps = math.ceil(math.ceil(rows / batch_size) / hp.gradient_accumulation_steps)
    n_epochs = auto_epochs(rows, steps) if hp.n_epochs == "auto" else hp.n_epochs
    automatic = auto_learning_rate(hp.optim, hidden_size, rates) * task.rate
    multiplier = 1.0 if hp.learning_rate_multiplier == "auto" else hp.learning_rate_multiplier
    warmup_ratio = 0.1 if hp.warmup_ratio == "auto" else hp.warmup_ratio
    warmup = round(warmup_ratio * steps * n_epochs) if hp.warmup_steps is None else hp.warmup_steps
    masking = task.word_dropout if rows >= SMALL_DATASET and can_mask else 0.0
    return Recipe(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate=automatic * multiplier if hp.learning_rate == "auto" else hp.learning_rate,
        warmup_steps=warmup,
        weight_decay=0.01 if hp.weight_decay == "auto" else hp.weight_decay,
        lr_scheduler_type="linear" if hp.lr_scheduler_type == "auto" else hp.lr_scheduler_type,
        optim=hp.optim,
        gradient_accumulation_steps=hp.gradient_accumulation_steps,
        max_grad_norm=hp.max_grad_norm,
        max_length=length,
        label_smoothing_factor=task.label_smoothing
        if hp.label_smoothing_factor == "auto"
        else hp.label_smoothing_factor,
        word_dropout=masking if hp.word_dropout == "auto" else hp.word_dropout,
        mixed_precision=("bf16" if bf16_is_faster else "no") if hp.mixed_precision == "auto" else hp.mixed_precision,
        class_weights=hp.class_weights,
        validation_split=validation_split,
        test_split=test_split,
        steps_per_epoch=steps,
        head_learning_rate_factor=rates.head,
    )
