"""The bytes of a batch: lines of the input read and checked, lines of the output made, parts put in order.

Pure: knows no row, no store and no event loop. A line's body stays the bytes that the caller wrote, so that the online
route reads exactly those.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, BinaryIO, Literal

import msgspec

from app.core.ids import new_id
from app.core.rows import MAX_LINE_BYTES

MAX_LINES = 50_000
_MAX_ERRORS = 100
_PATH = re.compile(r"(?:`\$\.|field `)(\w+)`")


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    stream: Any = False


class _Problem(Exception):
    def __init__(self, code: str, message: str, param: str | None = None, line: int | None = None) -> None:
        self.code, self.message, self.param, self.line = code, message, param, line


@dataclass(frozen=True, slots=True)
class Line:
    """One request."""

    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What the route said."""

    status: int
    request_id: str
    body: bytes
    """JSON."""
    retry_after: float | None
    """Seconds, when asking again may help."""

    @property
    def code(self) -> str | None:
        """The error's code."""
        found = msgspec.json.decode(self.body) if self.status >= 400 else {}
        return str(found["error"].get("code")) if isinstance(found.get("error"), dict) else None


# --- input ---


def check(stream: BinaryIO, endpoint: str) -> tuple[int, list[dict[str, Any]]]:
    """How many requests there are, and what is wrong with them (the first hundred, as OpenAI's `errors.data`)."""
    seen: set[str] = set()
    problems: list[dict[str, Any]] = []
    total = 0
    try:
        for number, raw in _numbered(stream):
            total += 1
            if total > MAX_LINES:
                raise _Problem("too_many_lines", f"the file has over {MAX_LINES:,} requests: split it", line=number)
            try:
                line = _parse(raw, endpoint)
                if line.custom_id in seen:
                    raise _Problem(
                        "duplicate_custom_id", f"custom_id {line.custom_id[:64]!r} was used before", "custom_id"
                    )
                seen.add(line.custom_id)
            except _Problem as exc:
                problems.append(_shown(exc, number))
                if len(problems) == _MAX_ERRORS:
                    break
        if not total:
            raise _Problem("empty_file", "the file holds no request: one JSON object a line")
    except _Problem as exc:
        problems.append(_shown(exc, exc.line))
    return total, problems


def read(stream: BinaryIO, skip: int) -> Iterator[Line]:
    """The requests after the first `skip`, of a file that was checked."""
    for _, raw in islice(_numbered(stream), skip, None):
        line = msgspec.json.decode(raw, type=_Line)
        yield Line(line.custom_id, bytes(line.body))


def take(lines: Iterator[Line], count: int, size: int) -> list[Line]:
    """The next `count` lines, or as many as fill `size` bytes."""
    taken: list[Line] = []
    held = 0
    while len(taken) < count and held < size and (line := next(lines, None)):
        taken.append(line)
        held += len(line.body)
    return taken


def _numbered(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            message = f"the line has over {MAX_LINE_BYTES:,} bytes: send fewer inputs in one"
            raise _Problem("line_too_long", message, line=number)
        raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if raw := raw.strip():
            yield number, raw


def _parse(raw: bytes, endpoint: str) -> _Line:
    try:
        raw.decode()  # msgspec skips over a body without a look at its characters
        line = msgspec.json.decode(raw, type=_Line)
    except msgspec.ValidationError as exc:
        path = _PATH.search(str(exc))
        raise _Problem("invalid_line", f"not a request: {exc}", path and path[1]) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _Problem("invalid_json_line", f"not valid JSON: {exc}") from exc
    try:
        body = msgspec.json.decode(line.body, type=_Body)
    except msgspec.ValidationError as exc:
        raise _Problem("invalid_line", f"body: {exc}", "body") from exc
    if line.url != endpoint:
        raise _Problem("invalid_url", f"url is {line.url[:64]!r}, but the batch is for {endpoint!r}", "url")
    if body.stream:
        raise _Problem("stream_not_supported", "a batch streams nothing: remove `stream`", "body.stream")
    return line


def _shown(problem: _Problem, number: int | None) -> dict[str, Any]:
    message = problem.message.replace("\0", "?")[:400]  # it may quote a field's name; Postgres stores no NUL
    return {"code": problem.code, "line": number, "message": message, "param": problem.param}


# --- output ---


def answered(line: Line, answer: Answer) -> bytes:
    """A line of the output or error file."""
    response = {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": msgspec.Raw(answer.body.replace(b"\n", b" ")),  # JSON has line ends between its tokens only
    }
    return _encoded(line, response, None)


def unanswered(line: Line, code: str, message: str) -> bytes:
    """A line of the error file for a request that was never answered."""
    return _encoded(line, None, {"code": code, "message": message})


def _encoded(line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    row = {"id": new_id("batch_req_"), "custom_id": line.custom_id, "response": response, "error": error}
    return msgspec.json.encode(row) + b"\n"


def part_name(first: int, fence: int, count: int) -> str:
    """The name of the part that holds the answers to `count` requests from `first` on."""
    return f"{first:08d}-{fence}-{count}"


def committed(names: Iterable[str], done: int) -> list[str]:
    """Of all parts that were stored, those that make up the first `done` answers, in order.

    A gateway that crashed, or lost its lease and did not know, leaves parts that were never counted. They begin where a
    counted part of a higher fence begins, or at `done`: a later holder starts where the counted ones end.
    """
    parts: dict[int, tuple[int, int]] = {}
    for name in names:
        first, fence, count = map(int, name.split("-"))
        parts[first] = max(parts.get(first, (0, 0)), (fence, count))
    chain, at = [], 0
    while at < done:
        fence, count = parts[at]
        chain.append(part_name(at, fence, count))
        at += count
    return chain
