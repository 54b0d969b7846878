"""What a task owes the loop: labels from rows, features from text, targets, a loss, metrics.

Knows no model and no file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from workers.codecs.text import TextCodec
from workers.training.batching import Feature
from workers.training.data import Example
from workers.training.losses import Loss
from workers.training.recipe import TaskDefaults

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A split ready for the model: its examples, and per example the features that it became."""

    examples: Sequence[Example]
    features: Sequence[Sequence[Feature]]

    @property
    def flat(self) -> list[Feature]:
        return [feature for parts in self.features for feature in parts]


class Task(ABC):
    """One ML task. `labels` (logit index -> label) is set once, from the training rows."""

    pooled: bool
    """True: one vector of logits a row; False: one a token."""
    defaults = TaskDefaults()

    def __init__(self, *, multi_label: bool) -> None:
        self.multi_label = multi_label
        self.labels: list[str] = []

    @abstractmethod
    def text(self, example: Example) -> str:
        """The row's input as one text, to count its tokens."""

    @abstractmethod
    def row_labels(self, example: Example) -> list[str]:
        """The labels (entity types) that occur in a row: for the vocabulary, strata and unseen labels."""

    @abstractmethod
    def vocabulary(self, names: Sequence[str]) -> list[str]:
        """The model's labels, from the sorted distinct `row_labels`.

        Raises ValueError when there is nothing to learn.
        """

    @abstractmethod
    def features(self, examples: Sequence[Example], codec: TextCodec) -> list[list[Feature]]:
        """Per example, the rows that it becomes (a long sentence becomes several windows)."""

    @abstractmethod
    def collate(self, features: Sequence[Feature]) -> Tensor:
        """Targets of a batch, as wide as its longest row."""

    @abstractmethod
    def criterion(self, features: Sequence[Feature], *, balanced: bool, smoothing: float) -> Loss:
        """The loss; `balanced` weighs labels by how rare they are in `features`."""

    @abstractmethod
    def metrics(self, split: Prepared, logits: Sequence[Sequence[Floats]]) -> tuple[dict[str, float], dict[str, Any]]:
        """(metrics, report per label) of logits given per example and feature, without padding."""

    @abstractmethod
    def baseline(self, examples: Sequence[Example], train: Sequence[Example]) -> dict[str, float]:
        """What the commonest answer in `train` would reach, to be shown beside the metrics."""

    @abstractmethod
    def same_decision(self, a: Floats, b: Floats, tolerance: float) -> Bools:
        """Whether two logit arrays decide alike, one value a decision; ties within `tolerance` are alike."""


def same_argmax(a: Floats, b: Floats, tolerance: float) -> Bools:
    """The label that wins in `a` also wins in `b`, or loses there by no more than `tolerance`."""
    winner = np.take_along_axis(b, a.argmax(-1)[..., None], -1)[..., 0]
    agree: Bools = winner >= b.max(-1) - tolerance
    return agree
