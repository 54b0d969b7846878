"""The menu of ML tasks: the row shapes each trains on and the tuners it allows.

Knows nothing of how a task trains (`workers/training/tasks`) or answers (`workers/inference/tasks`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

TaskName = Literal["text-classification", "token-classification", "sentence-embedding"]


class ColumnKind(StrEnum):
    """What every value of a column must be; a file's profile names the first line that is not."""

    TEXT = "text"
    """a non-empty string"""
    LABEL = "label"
    """a non-empty string, an integer or a boolean"""
    LABELS = "labels"
    """a list of strings, possibly empty"""
    TOKENS = "tokens"
    """a non-empty list of strings"""
    IOB2 = "iob2"
    """a non-empty list of `O`, `B-<type>` and `I-<type>`"""


KIND_HELP: dict[ColumnKind, str] = {
    ColumnKind.TEXT: "a non-empty string",
    ColumnKind.LABEL: "a non-empty string, an integer or a boolean",
    ColumnKind.LABELS: "a list of strings",
    ColumnKind.TOKENS: "a non-empty list of strings",
    ColumnKind.IOB2: "a non-empty list of IOB2 tags (`O`, `B-<type>`, `I-<type>`)",
}


@dataclass(frozen=True)
class RowShape:
    """One accepted form of training rows: fields and what their values must be."""

    fields: dict[str, ColumnKind]
    label_field: str
    same_length: tuple[str, str] | None = None
    """Two list fields whose lengths must agree in every row."""
    multi_label: bool = False


@dataclass(frozen=True)
class TaskSpec:
    """A task as the gateway sees it."""

    name: TaskName
    shapes: tuple[RowShape, ...]
    tuners: frozenset[str]
    metrics: tuple[str, ...]
    """Names usable as `early_stopping.metric`; the first is the default and picks the best epoch."""
    input_fields: frozenset[str]
    """Fields of an object input; a plain string stands for `text`."""
    parameters: frozenset[str]
    """Accepted in `/predict`'s `parameters`."""

    @property
    def trainable(self) -> bool:
        """Whether a job may train it; base models answer the others as they are."""
        return bool(self.shapes)


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="text-classification",
            shapes=(
                RowShape({"text": ColumnKind.TEXT, "label": ColumnKind.LABEL}, label_field="label"),
                RowShape(
                    {"text": ColumnKind.TEXT, "labels": ColumnKind.LABELS},
                    label_field="labels",
                    multi_label=True,
                ),
            ),
            tuners=frozenset({"full", "lora"}),
            metrics=("accuracy", "macro_f1", "micro_f1", "loss"),
            input_fields=frozenset({"text"}),
            parameters=frozenset({"top_k", "return_all_scores", "threshold"}),
        ),
        TaskSpec(
            name="token-classification",
            shapes=(
                RowShape(
                    {"tokens": ColumnKind.TOKENS, "ner_tags": ColumnKind.IOB2},
                    label_field="ner_tags",
                    same_length=("tokens", "ner_tags"),
                ),
            ),
            tuners=frozenset({"full", "lora"}),
            metrics=("f1", "precision", "recall", "accuracy", "loss"),
            input_fields=frozenset({"text", "tokens"}),
            parameters=frozenset(),
        ),
        TaskSpec(
            name="sentence-embedding",
            shapes=(),
            tuners=frozenset(),
            metrics=(),
            input_fields=frozenset({"text"}),
            parameters=frozenset({"dimensions"}),
        ),
    )
}
