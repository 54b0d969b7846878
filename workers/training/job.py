"""One training job from spec to sealed artifact: the story of `entry.py`, with torch loaded.

Puts the parts together; each part's own file knows how.
"""

from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from app.contracts.manifest import Serving
from app.contracts.tasks import TASKS as TASK_MENU
from app.contracts.training import Finished, Split, TrainingSpec
from workers.training import device, encoders, export
from workers.training.batching import Batch, steps_of, training_batches
from workers.training.checkpoints import Checkpoints
from workers.training.embeddings import restore_table, train_used_rows
from workers.training.evaluation import collate, evaluate
from workers.training.loop import Steps, Trained, train
from workers.training.masking import mask_tokens
from workers.training.models import TaskModel, build
from workers.training.objectives.supervised import Supervised
from workers.training.parity import check_parity
from workers.training.prepare import Job, prepare
from workers.training.reporter import Reporter
from workers.training.weights import start_from


def run(spec: TrainingSpec, reporter: Reporter) -> None:
    """Train, evaluate, export; ends with `Finished`. Raises `TrainingFailed` and `Stopped`."""
    reporter.phase("validating_files")
    if spec.export_only and spec.start_from is None:
        encoders.export_base(spec, reporter)
        return
    job = prepare(spec, reporter)
    reporter.emit(job.resolved())
    output = Path(spec.output)
    output.mkdir(parents=True, exist_ok=True)
    trained, metrics = Trained(0, 0, 0, 0.0, None), {}
    if spec.export_only:
        model = start(job)
        job.tuner.merge(model)
    else:
        with reporter.table(output / "metrics.csv", TASK_MENU[spec.task].metrics):
            reporter.phase("training")
            model, trained = fit(job, reporter)
        reporter.phase("evaluating")
        metrics = measure(job, model, trained, reporter)
    reporter.phase("exporting")
    parity = publish(job, model, output / "artifact", reporter)
    reporter.emit(
        Finished(
            metrics=metrics,
            datasets=job.dataset_figures,
            parity=parity,
            trained_tokens=trained.tokens,
            train_seconds=trained.seconds,
            samples_per_second=trained.rows / max(trained.seconds, 1e-9),
        )
    )


def start(job: Job) -> TaskModel:
    """The model before its first step: the base's weights, or a checkpoint's, under the tuner."""
    model = build(job.base, len(job.task.labels), pooled=job.task.pooled, attention=job.attention)
    job.tuner.attach(model)
    if job.spec.start_from:
        start_from(model, Path(job.spec.start_from))
    return model


def fit(job: Job, reporter: Reporter) -> tuple[TaskModel, Trained]:
    """The trained model, a plain module again."""
    plan, features = job.effective, job.features
    model = start(job)
    mask = job.mask_token_id()
    train_used_rows(model, {mask, *(i for f in features for i in f.ids)})
    balanced = plan.class_weights == "balanced"
    criterion = job.task.criterion(features, balanced=balanced, smoothing=plan.label_smoothing_factor)
    objective = Supervised(model, criterion, plan, job.device)

    def steps(epoch: int) -> Steps:
        batches = training_batches([len(f.ids) for f in features], job.plan.batch_size, (job.spec.seed, epoch))
        accumulation = job.plan.gradient_accumulation_steps
        parts = plan.gradient_accumulation_steps // accumulation

        def batch(number: int, part: int, rows: Iterable[int]) -> Batch:
            plain = collate(job.task, [features[i] for i in rows], job.base.pad_token_id)
            return mask_tokens(plain, plan.word_dropout, mask, (job.spec.seed, epoch, number, part))

        return [[partial(batch, *piece) for piece in step] for step in steps_of(batches, accumulation, parts)]

    def validate() -> dict[str, float]:
        return _evaluate(job, model, "validation", objective.logits, reporter)[0]

    model.train()
    trained = train(
        objective=objective,
        recipe=plan,
        steps=steps,
        validate=validate if "validation" in job.splits else None,
        metric=job.metric,
        early_stopping=job.spec.early_stopping,
        checkpoints=Checkpoints(job.spec, job.resolved(), reporter),
        reporter=reporter,
    )
    restore_table(model)
    job.tuner.merge(model)
    return model, trained


def measure(job: Job, model: TaskModel, trained: Trained, reporter: Reporter) -> dict[str, Any]:
    """Metrics of the held-out splits, in float32 and after the merge: measured is what will be served."""
    metrics: dict[str, Any] = {}
    for split in (s for s in job.splits if s != "train"):
        values, report = _evaluate(job, model, split, lambda b: model(b.input_ids, b.attention_mask), reporter)
        values |= job.task.baseline(job.splits[split].examples, job.splits["train"].examples)
        metrics[split] = {**values, "report": report}
        if split == "test":
            reporter.evaluation(trained.steps, trained.steps / job.plan.steps_per_epoch, split, values)
    return metrics


def _evaluate(
    job: Job, model: TaskModel, split: Split, logits_of: Callable[[Batch], torch.Tensor], reporter: Reporter
) -> tuple[dict[str, float], dict[str, Any]]:
    model.eval()
    pad, check = job.base.pad_token_id, reporter.check
    result = evaluate(job.task, job.splits[split], logits_of, pad_token_id=pad, device=job.device, check=check)
    model.train()
    return result


def publish(job: Job, model: TaskModel, artifact: Path, reporter: Reporter) -> dict[str, float]:
    """Write the artifact, its manifest last; returns the parity figures. Raises when parity fails."""
    artifact.mkdir()
    pad = job.base.pad_token_id
    export.export_onnx(model, artifact / "model.onnx", pad_token_id=pad)
    reporter.check()
    probe = job.splits.get("test") or job.splits.get("validation") or job.splits["train"]
    parity = check_parity(model, artifact / "model.onnx", job.task, probe.flat, pad_token_id=pad)
    export.save_model(model, job.base, job.task.labels, artifact)
    serving = Serving(
        task=job.spec.task,
        labels=job.task.labels,
        multi_label=job.spec.multi_label,
        max_length=job.plan.max_length,
        inputs=export.INPUTS,
        outputs=export.OUTPUTS,
        pad_token_id=pad,
    )
    export.seal(artifact, serving, _info(job, parity))
    return parity


def _info(job: Job, parity: dict[str, float]) -> dict[str, Any]:
    """What the manifest keeps for people and for reproduction."""
    spec = job.spec
    return {
        "base_model": spec.base_model,
        "base_model_revision": spec.base_model_revision,
        "recipe": {
            "hyperparameters": job.effective.hyperparameters(),
            "peft": spec.tuner.model_dump(),
            "early_stopping": spec.early_stopping.model_dump() if spec.early_stopping else None,
            "columns": spec.columns,
            "seed": spec.seed,
            "device": device.describe(job.device),
            "threads": job.threads,
            "attention": job.attention,
        },
        "datasets": {split: file.sha256 for split, file in spec.datasets.items()},
        "parity": parity,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "onnxruntime")},
    }
