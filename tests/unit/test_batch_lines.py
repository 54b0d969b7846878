"""The bytes of a batch: what a line must be, and which stored parts count."""

from io import BytesIO

import pytest

from app.services.batch_lines import check, committed, read, take

_LINE = b'{"custom_id": "%d", "method": "POST", "url": "/predict", "body": {"n":  %d}}\n'


def test_a_body_stays_the_bytes_that_were_sent() -> None:
    stream = BytesIO(b"\xef\xbb\xbf" + b"\n".join(_LINE % (k, k) for k in range(5)))
    assert check(stream, "/predict") == (5, [])
    stream.seek(0)
    lines = read(stream, 2)
    assert [(line.custom_id, line.body) for line in lines] == [(str(k), b'{"n":  %d}' % k) for k in (2, 3, 4)]


def test_lines_are_taken_by_count_and_by_size() -> None:
    lines = read(BytesIO(b"".join(_LINE % (k, k) for k in range(9))), 0)
    assert [len(take(lines, 4, 1 << 20)), len(take(lines, 4, 11)), len(take(lines, 4, 1 << 20))] == [4, 2, 3]
    assert take(lines, 4, 1 << 20) == []


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b'{"custom_id": "a", "method": "POST", "url": "/predict", "body": {"x": "\xff"}}', "invalid_json_line", None),
        (b'{"custom_id": "a", "method": "POST", "url": "/predict", "body": {,}}', "invalid_json_line", None),
        (b'{"custom_id": "a", "method": "POST", "url": "/predict"}', "invalid_line", "body"),
        (b'{"custom_id": "a", "method": "POST", "url": "/predict", "body": 5}', "invalid_line", "body"),
        (b'{"custom_id": "", "method": "POST", "url": "/predict", "body": {}}', "invalid_line", "custom_id"),
        (b'{"custom_id": "a", "method": "POST", "url": "/predict/", "body": {}}', "invalid_url", "url"),
        (b'{"custom_id": "a", "x\\u0000y": 1}', "invalid_line", None),
        (b'"' + b"x" * (8 << 20) + b'"', "line_too_long", None),
    ],
)
def test_what_is_wrong_with_a_line(raw: bytes, code: str, param: str | None) -> None:
    _, (problem,) = check(BytesIO(b"\n" + raw), "/predict")
    assert (problem["code"], problem["param"], problem["line"]) == (code, param, 2)
    assert "\0" not in problem["message"] and len(problem["message"]) <= 400


@pytest.mark.parametrize(
    ("stored", "done", "chain"),
    [
        (["00000000-1-64", "00000064-1-64"], 64, ["00000000-1-64"]),
        (["00000000-1-64", "00000064-1-64", "00000064-2-30"], 94, ["00000000-1-64", "00000064-2-30"]),
        (["00000000-2-10", "00000000-1-64", "00000010-3-5", "00000064-1-64"], 15, ["00000000-2-10", "00000010-3-5"]),
        ([], 0, []),
    ],
)
def test_parts_that_were_never_counted_are_left_out(stored: list[str], done: int, chain: list[str]) -> None:
    assert committed(stored, done) == chain
