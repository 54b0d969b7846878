"""Groups rows of like length into batches and pads them: seeded, deterministic, little padding.

Knows lengths and arrays only. Padding costs as much as text, and random batches of short texts are half
padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workers.codecs.text import pad

BUCKET_BATCHES = 50
"""Rows are sorted by length within stretches of this many batches: little padding, order still random."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One row of a batch: token ids, and the target in its task's form."""

    ids: list[int]
    target: Any


@dataclass(frozen=True, slots=True)
class Batch:
    """`input_ids`, `attention_mask` int64 [rows, sequence]; `targets` as the task collates them."""

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    tokens: int
    """Padding left out."""

    def to(self, device: torch.device) -> "Batch":
        """On `device`; copies overlap with compute where the device has its own memory."""
        if device.type == "cpu":
            return self
        ids, mask, targets = (
            t.pin_memory().to(device, non_blocking=True) for t in (self.input_ids, self.attention_mask, self.targets)
        )
        return Batch(ids, mask, targets, self.tokens)


def training_batches(lengths: Sequence[int], batch_size: int, seed: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Row indices of each batch, every row once; the same seed gives the same batches in the same order."""
    rng = np.random.default_rng(list(seed))
    sizes = np.asarray(lengths)
    order = rng.permutation(len(sizes))
    stretch = batch_size * BUCKET_BATCHES
    batches: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        part = part[np.argsort(-sizes[part], kind="stable")]
        batches.extend(part[i : i + batch_size] for i in range(0, len(part), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def steps_of(
    batches: Sequence[npt.NDArray[np.int64]], accumulation: int, parts: int
) -> list[list[tuple[int, int, npt.NDArray[np.int64]]]]:
    """Batches grouped into optimizer steps, each batch cut into at most `parts`: (batch, part, rows) each.

    Cutting keeps which rows a step sees, so a run may go on with smaller parts from a checkpoint made with larger.
    """
    cut = [
        [(number, part, rows) for part, rows in enumerate(np.array_split(batch, parts)) if len(rows)]
        for number, batch in enumerate(batches)
    ]
    return [list(chain(*cut[i : i + accumulation])) for i in range(0, len(cut), accumulation)]


def evaluation_batches(lengths: Sequence[int], tokens: int = 8192) -> list[npt.NDArray[np.int64]]:
    """Row indices by falling length, each batch at most about `tokens` padded tokens."""
    sizes = np.asarray(lengths)
    order = np.argsort(-sizes, kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        rows = max(1, tokens // max(1, int(sizes[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def input_tensors(features: Sequence[Feature], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of some rows, int64 [rows, longest]."""
    ids, mask = pad([f.ids for f in features], pad_token_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)
