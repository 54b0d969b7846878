"""The gate between torch and the exported graph: same rows, same logits, same decisions, at several shapes.

Knows both runtimes; knows nothing of files besides the graph.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from workers.training.batching import Feature, input_tensors
from workers.training.errors import TrainingFailed
from workers.training.models import TaskModel
from workers.training.tasks.base import Task

TOLERANCE = 1e-3
"""Largest |logit difference|. Both sides compute in float32 and differ by about 1e-5; 1e-3 moves no
probability by more than 0.03 points."""
BATCH_SIZES = (1, 2, 5, 8, 16)
ROWS = 64


def check_parity(
    model: TaskModel, graph: Path, task: Task, features: Sequence[Feature], *, pad_token_id: int
) -> dict[str, float]:
    """Run real rows through both; returns the figures of `Finished.parity`.

    Batches have 1, 2, 5, 8 and 16 rows of rising length. Raises `TrainingFailed` (`parity_failed`) when a
    logit differs by more than `TOLERANCE` or any decision differs.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    model.eval().to("cpu")
    worst, alike, decisions, rows = 0.0, 0, 0, 0
    for batch in _batches(features):
        ids, mask = input_tensors(batch, pad_token_id)
        with torch.no_grad():
            expected = model(ids, mask).numpy()
        (got,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        if not task.pooled:  # only real tokens: what stands on padding is never read
            expected, got = expected[mask.numpy() == 1], got[mask.numpy() == 1]
        difference = float(np.abs(expected - got).max())
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
        same = task.same_decision(expected, got, TOLERANCE)
        alike, decisions, rows = alike + int(same.sum()), decisions + same.size, rows + len(batch)
    agreement = alike / decisions
    if worst > TOLERANCE or agreement < 1.0:
        raise TrainingFailed(
            "parity_failed",
            f"the ONNX graph differs from torch by {worst:.2g} in a logit (limit {TOLERANCE:g}) and agrees "
            f"on {agreement:.2%} of decisions (limit 100 %) over {rows} rows: the version is not published; "
            "use another base model, and report this one",
        )
    return {
        "max_abs_logit_diff": worst,
        "label_agreement": agreement,
        "rows": float(rows),
        "tolerance": TOLERANCE,
    }


def _batches(features: Sequence[Feature]) -> list[list[Feature]]:
    """Up to `ROWS` rows spread over all lengths, shortest first, cut into the batch sizes in turn."""
    by_length = sorted(features, key=lambda f: len(f.ids))
    picks = np.linspace(0, len(by_length) - 1, min(ROWS, len(by_length))).round().astype(int)
    chosen = [by_length[i] for i in picks]
    batches: list[list[Feature]] = []
    at = 0
    while at < len(chosen):
        size = BATCH_SIZES[len(batches) % len(BATCH_SIZES)]
        batches.append(chosen[at : at + size])
        at += size
    return batches
