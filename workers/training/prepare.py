"""Everything a job settles before the first step: device, base model, rows, labels, tokens, recipe.

Reads the files of the spec and no weights.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from app.contracts.tasks import TASKS as TASK_MENU
from app.contracts.training import Resolved, Split, TrainingSpec
from model_store import checkpoints
from workers.codecs.text import TextCodec
from workers.training import dataset, device, recipe
from workers.training.batching import Feature
from workers.training.data import invalid
from workers.training.errors import TrainingFailed
from workers.training.models import Base, attention_kernel, open_base
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
    attention: str

    @property
    def effective(self) -> recipe.Recipe:
        """The plan as it is run: with a smaller batch where memory ran out before."""
        return self.plan.halved(self.spec.batch_halvings)

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
            hyperparameters=self.effective.hyperparameters(),
            recipe=asdict(self.plan),
            rows={split: len(prepared.examples) for split, prepared in self.splits.items()},
            labels=self.task.labels,
            total_steps=self.plan.total_steps,
            device=device.describe(self.device),
            threads=self.threads,
            attention=self.attention,
        )


def prepare(spec: TrainingSpec, reporter: Reporter) -> Job:
    """Settle the job. Raises `TrainingFailed` for a bad base model or data set."""
    hp = spec.hyperparameters
    before = Resolved.model_validate(spec.resolved) if spec.resolved else None
    chosen, threads = device.prepare(spec.seed, before.threads if before else None)
    task = TASKS[spec.task](multi_label=spec.multi_label)
    tuner = TUNERS[spec.tuner.type](spec.tuner)
    base = open_base(Path(spec.base_model_path))
    splits, fractions = dataset.load_splits(spec, task)
    figures = dataset.report(splits, reporter)

    codec = TextCodec(base.tokenizer_file, max_length=base.max_length, pad_token_id=base.pad_token_id)
    counts = {split: codec.count([task.text(e) for e in rows]) for split, rows in splits.items()}
    for split, rows in splits.items():
        dataset.check_tokens(split, rows, counts[split], codec.special_tokens, reporter)
    made = recipe.Recipe(**before.recipe) if before else None
    length = made.max_length if made else recipe.max_length(hp, counts["train"], base.max_length)
    codec = TextCodec(base.tokenizer_file, max_length=length, pad_token_id=base.pad_token_id)
    prepared = {split: Prepared(rows, task.features(rows, codec)) for split, rows in splits.items()}
    features = prepared["train"].flat
    plan = made or recipe.resolve(
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
    attention = before.attention if before else attention_kernel(base.config)
    if spec.start_from and before is None:
        _check_labels(Path(spec.start_from), task.labels)
    return Job(spec, task, tuner, base, plan, prepared, features, metric, figures, chosen, threads, attention)


def _check_labels(checkpoint: Path, labels: list[str]) -> None:
    """A head goes on only over the labels that it was trained for."""
    known = checkpoints.read_manifest(checkpoint).resolved["labels"]
    if known != labels:
        odd = sorted(set(known) ^ set(labels))
        raise invalid(
            "train",
            f"the rows have {len(labels)} labels and the checkpoint {len(known)}; {odd[0]!r} is only in one of them: "
            "use the same labels, or start from the base model",
        )


def _selection_metric(spec: TrainingSpec, *, has_validation: bool) -> str:
    """`early_stopping.metric`, or the task's first."""
    metrics = TASK_MENU[spec.task].metrics
    if spec.early_stopping is None:
        return metrics[0]
    if not has_validation:
        raise invalid("validation", "early_stopping needs validation rows: give a file or raise validation_split")
    return spec.early_stopping.metric or metrics[0]
