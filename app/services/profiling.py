"""Builds a `DatasetProfile` in one pass over a file. Knows column kinds, not tasks and not HTTP."""

import hashlib
import json
import re
from itertools import combinations
from typing import Any, BinaryIO

from app.contracts.profile import MAX_COLUMNS, MAX_DISTINCT, ColumnProfile, DatasetProfile, pair_key
from app.contracts.tasks import ColumnKind
from app.core.errors import FileRejected
from app.core.rows import Format, Row, read_rows

_IOB2 = re.compile(r"O|[BI]-\S.{0,126}")
# About 100 bytes a remembered row: 200 MB at the most. Past it duplicates are no longer counted.
_MAX_REMEMBERED_ROWS = 2_000_000
_MAX_LABEL_CHARS = 256


def label_text(value: object) -> str | None:
    """A label as its name, or None when `value` cannot be one. Integers and booleans are names too."""
    if isinstance(value, str):
        return value if value.strip() and len(value) <= _MAX_LABEL_CHARS else None
    return str(value) if isinstance(value, bool | int) else None


def _kinds(value: Any) -> set[ColumnKind]:
    """Every kind that `value` is of."""
    if isinstance(value, str):
        kinds = {ColumnKind.TEXT} if value.strip() else set()
        return kinds | ({ColumnKind.LABEL} if label_text(value) else set())
    if isinstance(value, bool | int):
        return {ColumnKind.LABEL}
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        kinds = {ColumnKind.LABELS} if all(label_text(v) for v in value) else set()
        if value and all(value):
            kinds.add(ColumnKind.TOKENS)
            if all(_IOB2.fullmatch(v) for v in value):
                kinds.add(ColumnKind.IOB2)
        return kinds
    return set()


def _count_values(column: ColumnProfile, value: Any) -> None:
    if column.values is None:
        return
    for item in value if isinstance(value, list) else [value]:
        name = label_text(item)
        if name is None:
            # Free text, floats and nested values are not labels; such a column is not worth counting.
            if not isinstance(item, str) or len(item) > _MAX_LABEL_CHARS:
                column.values = None
                return
            continue
        column.values[name] = column.values.get(name, 0) + 1
        if len(column.values) > MAX_DISTINCT:
            column.values = None
            return


def _row_digest(row: Row) -> int:
    body = json.dumps(row, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little")


def profile_rows(stream: BinaryIO, fmt: Format) -> DatasetProfile:
    """Read every row once. Raises `FileRejected` naming the first broken line."""
    profile = DatasetProfile(format=fmt, rows=0, columns={})
    seen: set[int] = set()
    for line, row in read_rows(stream, fmt):
        profile.rows += 1
        _add_columns(profile, row, line)
        for name, column in profile.columns.items():
            value = row.get(name)
            kinds = _kinds(value)
            for kind in ColumnKind:
                if kind not in kinds:
                    column.first_not.setdefault(kind, line)
            _count_values(column, value)
        lists = sorted(k for k, v in row.items() if isinstance(v, list))[:8]
        for a, b in combinations(lists, 2):
            if len(row[a]) != len(row[b]):
                profile.length_mismatch.setdefault(pair_key(a, b), line)
        if len(seen) < _MAX_REMEMBERED_ROWS:
            before = len(seen)
            seen.add(_row_digest(row))
            profile.duplicate_rows += len(seen) == before
    if not profile.rows:
        raise FileRejected("the file holds no rows: upload at least two", code="empty_file")
    return profile


def _add_columns(profile: DatasetProfile, row: Row, line: int) -> None:
    new = row.keys() - profile.columns.keys()
    if len(profile.columns) + len(new) > MAX_COLUMNS:
        raise FileRejected(f"line {line}: more than {MAX_COLUMNS} columns; drop those the job does not need")
    for name in (k for k in row if k in new):
        if not name or len(name) > 128:
            raise FileRejected(f"line {line}: column name {name[:40]!r} must have 1 to 128 characters")
        # A column that appears late was missing on the first line.
        late = dict.fromkeys(ColumnKind, 1) if profile.rows > 1 else {}
        profile.columns[name] = ColumnProfile(first_not=late)
        profile.column_order.append(name)
