"""Losses as (sum, weight) pairs, so that a mean over several micro-batches is exact whatever their sizes.

Know logits and targets only. Targets of -100 count for nothing (padding, word pieces after the first).
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

IGNORED = -100


class Loss(nn.Module):
    """`forward(logits, targets)` sums over targets; divide by `weight(targets)` for the mean."""

    def __init__(self, label_weights: Tensor | None = None, smoothing: float = 0.0) -> None:
        """`label_weights` float32 [labels]; `smoothing` as in Szegedy et al. 2016, section 7."""
        super().__init__()
        self.register_buffer("label_weights", label_weights)
        self.label_weights: Tensor | None
        self.smoothing = smoothing

    @abstractmethod
    def weight(self, targets: Tensor) -> Tensor:
        """What the sum counts, as a scalar."""


class CrossEntropy(Loss):
    """Softmax cross-entropy over the last axis: logits [..., labels], targets int64 [...]."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.flatten(0, -2),
            targets.flatten(),
            weight=self.label_weights,
            label_smoothing=self.smoothing,
            ignore_index=IGNORED,
            reduction="sum",
        )

    def weight(self, targets: Tensor) -> Tensor:
        """The number of targets, or the sum of their labels' weights."""
        counted = targets[targets != IGNORED]
        return torch.ones_like(counted).sum() if self.label_weights is None else self.label_weights[counted].sum()


class BinaryCrossEntropy(Loss):
    """One sigmoid a label, for rows that carry any number of labels: logits and float targets [rows, labels].

    `label_weights` weigh the positive cases.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        targets = targets * (1 - self.smoothing) + 0.5 * self.smoothing
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.label_weights, reduction="sum")

    def weight(self, targets: Tensor) -> Tensor:
        """Rows times labels."""
        return torch.ones_like(targets).sum()
