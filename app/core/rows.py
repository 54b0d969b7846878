"""Reads dataset files row by row, in three formats, naming the line that is broken. Knows no task and no column.

Gateway and trainer read through this one door, so what an upload accepts a job can read.
"""

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

from app.core.errors import FileRejected

Format = Literal["jsonl", "csv", "parquet"]
Row = dict[str, Any]

MAX_LINE_BYTES = 8 << 20
_SNIFF_BYTES = 1 << 16
_OTHER_MAGIC = {
    b"\x1f\x8b": "gzip data: unpack it with gunzip first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x80\x04": "a pickle, which is never read: export the rows as JSONL",
    b"BZh": "bzip2 data: unpack it first",
}


def sniff(stream: BinaryIO, filename: str) -> Format:
    """The format by content; the name decides only between JSONL and CSV where the content does not.

    Raises `FileRejected` for an empty file and for bytes that are none of the three. Leaves the stream at 0.
    """
    stream.seek(0)
    head = stream.read(_SNIFF_BYTES)
    stream.seek(0)
    lines = [line.strip() for line in head.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    if not lines or not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise FileRejected("the file is empty: upload JSONL, CSV or Parquet rows", code="empty_file")
    if head[:4] == b"PAR1":
        return "parquet"
    for magic, what in _OTHER_MAGIC.items():
        if head.startswith(magic):
            raise FileRejected(f"the file is {what}")
    if b"\0" in head:
        raise FileRejected("the file is binary, and not Parquet: upload JSONL, CSV or Parquet rows")
    if lines[0][:1] in (b"{", b"["):
        return "jsonl"
    if filename.lower().endswith((".jsonl", ".json", ".ndjson")):
        return "jsonl"
    # A broken first line of JSONL must be reported as such, not read as a CSV header.
    return "jsonl" if sum(line[:1] == b"{" for line in lines[:20]) * 2 >= len(lines[:20]) else "csv"


def read_rows(stream: BinaryIO, fmt: Format) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row); lines count from 1 as an editor shows them (Parquet: rows from 1).

    Raises `FileRejected` naming the first broken line.
    """
    stream.seek(0)
    reader = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[fmt]
    return reader(stream)


def read_file(path: Path, fmt: Format) -> Iterator[tuple[int, Row]]:
    """`read_rows` over a path."""
    with path.open("rb") as stream:
        yield from read_rows(stream, fmt)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _decode(raw: bytes, number: int) -> str:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as exc:
        raise FileRejected(f"line {number}: byte {exc.start} is not valid UTF-8: save the file as UTF-8") from exc
    if "\0" in text:
        raise FileRejected(f"line {number}: NUL character: remove it")
    return text


def _jsonl(stream: BinaryIO) -> Iterator[tuple[int, Row]]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise FileRejected(f"line {number} is longer than {MAX_LINE_BYTES:,} bytes: one JSON object a line")
        text = _decode(raw, number).strip()
        if not text:
            continue
        try:
            row = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            reason = getattr(exc, "msg", None) or str(exc)
            column = f", column {exc.colno}" if isinstance(exc, json.JSONDecodeError) else ""
            raise FileRejected(f"line {number}{column}: not valid JSON ({reason})", code="invalid_jsonl") from exc
        if not isinstance(row, dict):
            raise FileRejected(
                f'line {number}: expected a JSON object such as {{"text": ...}}, found {type(row).__name__}',
                code="invalid_jsonl",
            )
        if "\\u" in text:
            _refuse_odd_escapes(row, number)
        yield number, row


def _refuse_odd_escapes(row: Row, number: int) -> None:
    """`\\u0000` and half a surrogate pair are legal JSON that neither Postgres nor a tokenizer can hold."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise FileRejected(f"line {number}: half of a surrogate pair (\\ud...): remove it") from exc
    if "\\u0000" in text:
        raise FileRejected(f"line {number}: NUL character (\\u0000): remove it")


def _csv_lines(stream: BinaryIO) -> Iterator[str]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise FileRejected(f"line {number} is longer than {MAX_LINE_BYTES:,} bytes: split the file into rows")
        yield _decode(raw, number)


def _csv(stream: BinaryIO) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _csv_lines(stream)
    blank, first = 0, next(lines, "")
    while first and not first.strip():
        blank, first = blank + 1, next(lines, "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    line = blank + 1
    try:
        header = next(reader)
        if len(header) < 2:
            raise FileRejected(
                f"line {line}: found one column ({first.strip()[:40]!r}); the file is read as CSV and needs a header "
                "of at least two columns, or one JSON object a line (JSONL)"
            )
        if len(set(header)) < len(header) or not all(h.strip() for h in header):
            raise FileRejected(f"line {line}: column names must be distinct and not empty")
        line = blank + reader.line_num
        for values in reader:
            line, start = blank + reader.line_num, line + 1
            if not values:
                continue
            if len(values) != len(header):
                raise FileRejected(
                    f"line {start}: {len(values)} fields, but the header has {len(header)}: quote fields that "
                    f"hold {delimiter!r}"
                )
            yield start, dict(zip(header, values, strict=True))
    except csv.Error as exc:
        raise FileRejected(f"line {blank + reader.line_num}: not valid CSV ({exc})", code="invalid_csv") from exc


def _parquet(stream: BinaryIO) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # A copy of nothing: pyarrow reads through the handle. Memory stays at one batch of rows.
        source = pyarrow.parquet.ParquetFile(io.BufferedReader(_NoClose(stream)))
        names = source.schema_arrow.names
        if len(set(names)) < len(names):
            raise FileRejected("the Parquet schema repeats a column name")
        number = 0
        for batch in source.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as exc:
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise FileRejected(f"not valid Parquet ({reason})", code="invalid_parquet") from exc


class _NoClose(io.RawIOBase):
    """The caller's stream, safe from a reader that closes what it was given."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
