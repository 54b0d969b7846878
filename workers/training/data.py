"""Rows on disk to examples: reads the files of a job, checks every value, and reports what is odd without
dropping it.

Knows row shapes and column mappings; knows neither tokens nor tensors. `splits.py` divides what is read here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.contracts.tasks import KIND_HELP, TASKS, ColumnKind, RowShape
from app.contracts.training import DatasetFile, Split, TrainingSpec
from app.core.errors import FileRejected
from app.core.rows import read_file
from workers.training.errors import TrainingFailed

FILE_PARAM: dict[Split, str] = {
    "train": "training_file",
    "validation": "validation_file",
    "test": "test_file",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One row: its values by field, and where it stood."""

    values: dict[str, Any]
    line: int
    key: str
    """Its inputs as one string: rows with equal keys are duplicates, whatever their labels."""


def row_shape(spec: TrainingSpec) -> RowShape:
    """The form of rows this job trains on."""
    return next(s for s in TASKS[spec.task].shapes if s.multi_label == spec.multi_label)


def invalid(split: Split, message: str, line: int | None = None) -> TrainingFailed:
    """The error for a bad file: names the file's role and the line."""
    where = FILE_PARAM[split] + (f", line {line}" if line else "")
    return TrainingFailed("invalid_dataset", f"{where}: {message}", param=FILE_PARAM[split])


def read_examples(file: DatasetFile, split: Split, shape: RowShape, columns: dict[str, str]) -> list[Example]:
    """Every row of a file. Raises `TrainingFailed` naming the first line that does not have the shape."""
    examples = []
    try:
        for line, row in read_file(Path(file.path), file.format):
            values = {
                field: _value(row.get(columns.get(field, field)), kind, columns.get(field, field), split, line)
                for field, kind in shape.fields.items()
            }
            if shape.same_length:
                a, b = shape.same_length
                if len(values[a]) != len(values[b]):
                    message = f"{len(values[a])} {a} but {len(values[b])} {b}; give exactly one tag per token"
                    raise invalid(split, message, line)
            inputs = [value for field, value in values.items() if field != shape.label_field]
            examples.append(Example(values, line, json.dumps(inputs, ensure_ascii=False)))
    except FileRejected as error:
        raise invalid(split, error.message) from error
    if len(examples) < 2:
        raise invalid(split, f"{len(examples)} row(s); at least 2 are needed: add rows")
    return examples


def _value(value: Any, kind: ColumnKind, column: str, split: Split, line: int) -> Any:
    match kind, value:
        case ColumnKind.TEXT | ColumnKind.LABEL, str() if value.strip():
            return value
        case ColumnKind.LABEL, bool() | int():
            return str(value)
        case ColumnKind.LABELS, list() if all(isinstance(v, str) and v.strip() for v in value):
            return sorted(set(value))
        case ColumnKind.TOKENS, list() if value and all(isinstance(v, str) for v in value):
            return value
        case ColumnKind.IOB2, list() if value and all(_is_iob2(v) for v in value):
            return value
    shown = "absent" if value is None else repr(value)[:60]
    raise invalid(split, f"column {column!r} must be {KIND_HELP[kind]}, but is {shown}", line)


def _is_iob2(tag: Any) -> bool:
    return isinstance(tag, str) and (tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2))


def duplicates(examples: Sequence[Example]) -> int:
    """Rows whose input occurred earlier in the same split."""
    return len(examples) - len({e.key for e in examples})


def overlap(examples: Sequence[Example], train: Sequence[Example]) -> int:
    """Rows whose input also occurs in `train`."""
    keys = {e.key for e in train}
    return sum(e.key in keys for e in examples)
