"""Everything a job settles before the first step: device, base model, rows, labels, tokens, recipe.

Reads the files of the spec and no weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.contracts.tasks import TASKS as TASK_MENU
from app.contracts.training import Resolved, Split, TrainingSpec
from workers.codecs.text import TextCodec
from workers.training import dataset, device, recipe
from workers.training.batching import Feature
from workers.training.data import invalid
from workers.training.errors import TrainingFailed
from workers.training.models import Base, open_base
from workers.training.reporter import Reporter
from workers.training.tasks import TASKS
from workers.training.tasks.base import Prepared, Task
from workers.training.tuners import TUNERS
from workers.training.tuners.base import Tuner


@dataclass(frozen=True)
class Job:
    """A settled job."""

    spec: TrainingSpec
    task: Task
    tuner: Tuner
    base: Base
    plan: recipe.Recipe
    splits: dict[Split, Prepared]
    features: list[Feature]
    """Of the training rows."""
    metric: str
    """What picks the best epoch."""
    dataset_figures: dict[str, Any]
    device: torch.device
    threads: int

    def mask_token_id(self) -> int:
        """The base model's mask token; its padding where it has none and none is wanted."""
        if self.base.mask_token_id is not None:
            return self.base.mask_token_id
        if self.plan.word_dropout:
            raise TrainingFailed(
                "base_model",
                f"word_dropout is {self.plan.word_dropout:g}, but {self.spec.base_model!r} has no mask token: "
                "set it to 0",
                param="hyperparameters.word_dropout",
            )
        return self.base.pad_token_id

    def resolved(self) -> Resolved:
        """What the job's events tell of it."""
        return Resolved(
            hyperparameters=self.plan.hyperparameters(),
            rows={split: len(prepared.examples) for split, prepared in self.splits.items()},
            labels=self.task.labels,
            total_steps=self.plan.total_steps,
            device=device.describe(self.device),
            threads=self.threads,
        )


def prepare(spec: TrainingSpec, reporter: Reporter) -> Job:
    """Settle the job. Raises `TrainingFailed` for a bad base model or data set."""
    hp = spec.hyperparameters
    chosen, threads = device.prepare(spec.seed)
    task = TASKS[spec.task](multi_label=spec.multi_label)
    tuner = TUNERS[spec.tuner.type](spec.tuner)
    base = open_base(Path(spec.base_model_path))
    splits, fractions = dataset.load_splits(spec, task)
    figures = dataset.report(splits, reporter)

    codec = TextCodec(base.tokenizer_file, max_length=base.max_length, pad_token_id=base.pad_token_id)
    counts = {split: codec.count([task.text(e) for e in rows]) for split, rows in splits.items()}
    for split, rows in splits.items():
        dataset.check_tokens(split, rows, counts[split], codec.special_tokens, reporter)
    length = recipe.max_length(hp, counts["train"], base.max_length)
    codec = TextCodec(base.tokenizer_file, max_length=length, pad_token_id=base.pad_token_id)
    prepared = {split: Prepared(rows, task.features(rows, codec)) for split, rows in splits.items()}
    features = prepared["train"].flat
    plan = recipe.resolve(
        hp,
        rates=tuner.rates,
        task=task.defaults,
        rows=len(features),
        length=length,
        hidden_size=base.config.hidden_size,
        can_mask=base.mask_token_id is not None,
        bf16_is_faster=hp.mixed_precision == "auto" and device.bf16_is_faster(chosen),
        validation_split=fractions["validation"],
        test_split=fractions["test"],
    )
    metric = _selection_metric(spec, has_validation="validation" in splits)
    return Job(spec, task, tuner, base, plan, prepared, features, metric, figures, chosen, threads)


def _selection_metric(spec: TrainingSpec, *, has_validation: bool) -> str:
    """`early_stopping.metric`, or the task's first."""
    metrics = TASK_MENU[spec.task].metrics
    if spec.early_stopping is None:
        return metrics[0]
    if not has_validation:
        raise invalid("validation", "early_stopping needs validation rows: give a file or raise validation_split")
    return spec.early_stopping.metric or metrics[0]
