"""Hyperparameters as a caller may give them; `auto` values are chosen by `workers/training/recipe.py`.

Names are OpenAI's (`n_epochs`, `batch_size`, `learning_rate_multiplier`) and TRL/transformers' for the rest.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.contracts.common import Auto, Strict

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Hyperparameters(Strict):
    """All optional. `docs/api.md` states the rule behind every `auto`."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] = "auto"
    learning_rate: Auto | Annotated[float, Field(gt=0.0, le=10.0)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0.0, le=1000.0)] = "auto"
    """Scales the automatic learning rate; give this or `learning_rate`, not both."""
    warmup_ratio: Auto | Fraction = "auto"
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Overrides `warmup_ratio`."""
    weight_decay: Auto | Annotated[float, Field(ge=0.0, le=1.0)] = "auto"
    lr_scheduler_type: Auto | Literal["linear", "cosine", "constant", "constant_with_warmup"] = "auto"
    optim: Literal["adamw", "adam", "sgd", "adagrad"] = "adamw"
    gradient_accumulation_steps: int = Field(1, ge=1, le=1024)
    max_grad_norm: float = Field(1.0, ge=0.0, le=1000.0)
    """0 turns clipping off."""
    max_length: Auto | Annotated[int, Field(ge=8, le=8192)] = "auto"
    """Tokens; longer text is cut when training a text classifier, windowed when training a tagger."""
    label_smoothing_factor: Auto | Annotated[float, Field(ge=0.0, lt=1.0)] = "auto"
    word_dropout: Auto | Fraction = "auto"
    """Share of input tokens that each training step replaces by the mask token."""
    mixed_precision: Auto | Literal["no", "bf16"] = "auto"
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each class by n / (classes * count), as scikit-learn does."""
    validation_split: Auto | Fraction = "auto"
    """Share of the training rows held out when no `validation_file` is given."""
    test_split: Auto | Fraction = "auto"
    """Share of the training rows held out when no `test_file` is given."""

    @model_validator(mode="after")
    def _one_learning_rate(self) -> "Hyperparameters":
        if self.learning_rate != "auto" and self.learning_rate_multiplier != "auto":
            raise ValueError("give learning_rate or learning_rate_multiplier, not both: remove one of them")
        held_out = sum(s for s in (self.validation_split, self.test_split) if s != "auto")
        if held_out > 0.8:
            raise ValueError(
                f"validation_split + test_split is {held_out:g}; at most 0.8, "
                "so that rows are left to train on: lower one of them"
            )
        return self


class EarlyStopping(Strict):
    """Stop when `metric` on the validation rows has not risen by `threshold` for `patience` epochs."""

    patience: int = Field(2, ge=1, le=100)
    threshold: float = Field(0.0, ge=0.0, le=1.0)
    metric: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Default: the task's first metric."""
