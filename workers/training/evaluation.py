"""Logits of whole splits, and what they are worth. Knows models and tasks by their interfaces only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workers.training.batching import Batch, Feature, evaluation_batches, input_tensors
from workers.training.tasks.base import Floats, Prepared, Task


def collate(task: Task, features: Sequence[Feature], pad_token_id: int) -> Batch:
    """Some features as one batch."""
    ids, mask = input_tensors(features, pad_token_id)
    return Batch(ids, mask, task.collate(features), sum(len(f.ids) for f in features))


def evaluate(
    task: Task,
    split: Prepared,
    logits_of: Callable[[Batch], Tensor],
    *,
    pad_token_id: int,
    device: torch.device,
    check: Callable[[], None],
) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics with `loss`, report per label) of a split; `check` runs before each batch, and may raise."""
    features = split.flat
    criterion = task.criterion(features, balanced=False, smoothing=0.0).to(device)
    logits: dict[int, Floats] = {}
    loss = weight = 0.0
    with torch.no_grad():
        for rows in evaluation_batches([len(f.ids) for f in features]):
            check()
            batch = collate(task, [features[i] for i in rows], pad_token_id).to(device)
            scores = logits_of(batch)
            loss += float(criterion(scores, batch.targets))
            weight += float(criterion.weight(batch.targets))
            for row, values in zip(rows.tolist(), scores.cpu().numpy(), strict=True):
                logits[row] = values
    numbers = iter(range(len(features)))
    per_example = [[logits[next(numbers)] for _ in parts] for parts in split.features]
    metrics, report = task.metrics(split, per_example)
    return {**metrics, "loss": loss / max(weight, 1e-8)}, report
