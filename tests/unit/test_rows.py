"""Whatever bytes arrive, reading rows gives rows or a refusal in words; nothing else escapes to the caller."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given
from hypothesis import strategies as st

from app.contracts.profile import first_problem
from app.contracts.tasks import TASKS, ColumnKind
from app.core.errors import FileRejected
from app.core.rows import read_rows, sniff
from app.services.profiling import profile_rows

# Subnormals aside: the training loop turns them off for its process, and its tests run in this one.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def read_all(data: bytes, name: str = "upload") -> list[tuple[int, dict[str, object]]]:
    stream = io.BytesIO(data)
    return list(read_rows(stream, sniff(stream, name)))


@example(b"\n\x01", "upload")  # a blank line before a CSV header
@example(b"\x0b", "upload")  # white space that no format knows
@given(st.binary(max_size=300), st.sampled_from(["upload", "a.jsonl", "a.csv", "a.parquet"]))
def test_any_bytes_are_rows_or_a_refusal(data: bytes, name: str) -> None:
    try:
        rows = read_all(data, name)
    except FileRejected as refusal:
        assert refusal.message
    else:
        assert all(line >= 1 and len(row) <= 300 for line, row in rows)


@given(st.binary(max_size=200))
def test_damaged_parquet_is_refused_in_words(noise: bytes) -> None:
    whole = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), whole)
    data = bytearray(whole.getvalue())
    for at, byte in enumerate(noise):
        data[4 + (at * 7919) % (len(data) - 4)] = byte
    try:
        profile_rows(io.BytesIO(bytes(data)), "parquet")
    except FileRejected as refusal:
        assert refusal.message


@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=8), json_values, max_size=4), min_size=1, max_size=6))
def test_any_json_objects_have_a_profile(rows: list[dict[str, object]]) -> None:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    try:
        profile = profile_rows(io.BytesIO(data), "jsonl")
    except FileRejected:
        return  # NUL, an odd surrogate, or a column name past its limit
    assert profile.rows == len(rows)
    for name, column in profile.columns.items():
        for kind in ColumnKind:
            line = column.first_not.get(kind)
            assert line is None or 1 <= line <= len(rows), name
    for task in TASKS.values():
        for shape in task.shapes:
            first_problem(profile, shape, {})  # says something or nothing, never raises


def test_lines_count_as_an_editor_shows_them() -> None:
    data = b'\n{"text": "a"}\n\n{"text": "b"}\n'
    assert [line for line, _ in read_all(data)] == [2, 4]
    csv = b'text,label\n"two\nlines",x\nlast,y\n'
    assert [line for line, _ in read_all(csv)] == [2, 4]
    assert [line for line, _ in read_all(b"\n" + csv)] == [3, 5]
    assert [line for line, _ in read_all(b'"two\nlines",label\na,x\n')] == [3]


def test_a_byte_order_mark_is_no_part_of_the_first_column() -> None:
    assert read_all(b"\xef\xbb\xbftext,label\na,b\n")[0][1] == {"text": "a", "label": "b"}
    assert read_all(b'\xef\xbb\xbf{"text": "a"}\n')[0][1] == {"text": "a"}
