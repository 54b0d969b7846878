"""What an upload learns about a dataset while it is stored, so that job creation can refuse bad data at once.

A profile is independent of column names: it holds, for each column, the first line that is not of each kind, so
a job may map any column to any field without the file being read again.
"""

from typing import Literal

from pydantic import BaseModel, Field

from app.contracts.tasks import KIND_HELP, TASKS, ColumnKind, RowShape, TaskSpec

MAX_COLUMNS = 256
MAX_DISTINCT = 5000


class ColumnProfile(BaseModel):
    """One column."""

    first_not: dict[ColumnKind, int] = Field(default_factory=dict)
    """kind -> first line whose value is absent or not of that kind; a kind that always holds is missing here."""
    values: dict[str, int] | None = Field(default_factory=dict)
    """Value (or list element) -> count; None once more than `MAX_DISTINCT` were seen."""


class DatasetProfile(BaseModel):
    """A file of training rows."""

    format: Literal["jsonl", "csv", "parquet"]
    rows: int
    columns: dict[str, ColumnProfile]
    column_order: list[str] = Field(default_factory=list)
    """As in the file; Postgres' JSON keeps no order of its own."""
    duplicate_rows: int = 0
    length_mismatch: dict[str, int] = Field(default_factory=dict)
    """`"a|b"` (sorted) -> first line where the lists in columns a and b differ in length."""


def pair_key(a: str, b: str) -> str:
    """Key of `length_mismatch`."""
    return "|".join(sorted((a, b)))


def first_problem(profile: DatasetProfile, shape: RowShape, mapping: dict[str, str]) -> str | None:
    """Why the file does not have `shape` under `mapping` (field -> column), or None when it does."""
    for name, kind in shape.fields.items():
        column = mapping.get(name, name)
        found = profile.columns.get(column)
        if found is None:
            have = ", ".join(repr(c) for c in profile.column_order[:20])
            return (
                f"column {column!r} is missing; the file has {have}. "
                f'Rename it or map it with dataset: {{"{name}": "<column>"}}'
            )
        if kind in found.first_not:
            return f"line {found.first_not[kind]}: column {column!r} must be {KIND_HELP[kind]}"
    if shape.same_length:
        a, b = (mapping.get(f, f) for f in shape.same_length)
        line = profile.length_mismatch.get(pair_key(a, b))
        if line is not None:
            return f"line {line}: {a!r} and {b!r} differ in length; give exactly one tag per token"
    return None


def fitting_shape(profile: DatasetProfile, task: TaskSpec, mapping: dict[str, str]) -> RowShape | None:
    """The first of the task's shapes that every row has, or None."""
    return next((s for s in task.shapes if first_problem(profile, s, mapping) is None), None)


def closest_shape(profile: DatasetProfile, task: TaskSpec, mapping: dict[str, str]) -> RowShape:
    """The shape the file most likely meant: the one with most of its columns present. For error messages."""
    return max(task.shapes, key=lambda s: sum(mapping.get(f, f) in profile.columns for f in s.fields))


def infer_task(profile: DatasetProfile, mapping: dict[str, str]) -> TaskSpec | None:
    """The task whose columns the file has, when the caller names none."""
    for task in TASKS.values():
        if fitting_shape(profile, task, mapping):
            return task
    for task in TASKS.values():
        if any(all(mapping.get(f, f) in profile.columns for f in s.fields) for s in task.shapes):
            return task
    return None
