"""Bodies and tensors of the Open Inference Protocol: what comes back is what went in; broken bytes are refused."""

import json
import math
import struct
from array import array
from typing import Any

import numpy as np
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from app.api.oip import body, tensors
from app.contracts.oip import Tensor
from app.core.errors import InvalidRequest

INT64 = st.integers(-(2**63), 2**63 - 1)
# The worker sends finite numbers alone. No subnormal ones: a training test in the same process has torch make the
# processor flush them to zero (`workers/training/device.py`), under which hypothesis refuses to draw them.
FP32 = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@given(st.lists(st.binary(max_size=40)))
def test_bytes_are_what_the_stock_client_packs_and_unpacks(elements: list[bytes]) -> None:
    packed = tensors.to_binary(Tensor("t", "BYTES", (len(elements),), elements))
    theirs = serialize_byte_tensor(np.array(elements, dtype=np.object_))
    assert packed == (theirs.item() if theirs.size else b"")
    assert tensors.from_binary("t", "BYTES", packed) == elements
    assert deserialize_bytes_tensor(packed).tolist() == elements


@given(st.lists(INT64))
def test_integers_come_back_from_binary_and_json(values: list[int]) -> None:
    packed = np.array(values, dtype="<i8").tobytes()
    assert tensors.from_binary("t", "INT64", packed) == values
    assert tensors.from_json("t", "INT64", values) == values
    assert tensors.from_json("t", "INT64", [[value] for value in values]) == values


@given(st.lists(FP32))
def test_floats_are_little_endian(values: list[float]) -> None:
    tensor = Tensor("t", "FP32", (len(values),), array("f", values))
    assert tensors.to_binary(tensor) == struct.pack(f"<{len(values)}f", *values)
    assert tensors.to_json(tensor) == values


@given(st.lists(st.text(max_size=10), min_size=1, max_size=5), st.data())
def test_bytes_that_are_cut_short_are_refused(texts: list[str], data: st.DataObject) -> None:
    packed = tensors.to_binary(Tensor("t", "BYTES", (len(texts),), [text.encode() for text in texts]))
    cut = data.draw(st.integers(1, len(packed)))
    whole: list[Any] = []
    try:
        whole = tensors.from_binary("t", "BYTES", packed[:-cut])
    except InvalidRequest as exc:
        assert "ends at byte" in exc.message
    else:  # cut between two elements
        assert whole == [text.encode() for text in texts][: len(whole)]
        assert len(whole) < len(texts)


@given(st.binary(max_size=64), st.sampled_from(["BYTES", "INT64"]))
def test_any_bytes_are_read_or_refused(data: bytes, datatype: Any) -> None:
    try:
        elements = tensors.from_binary("t", datatype, data)
    except InvalidRequest:
        assert datatype == "BYTES" or len(data) % 8
    else:
        assert isinstance(elements, list)


@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
def test_any_body_is_read_or_refused(data: bytes, json_size: int | None) -> None:
    try:
        request, inputs = body.read(data, json_size)
    except (InvalidRequest, RequestValidationError):
        assert json_size != 0
    else:
        assert len(request.inputs) == len(inputs)


@given(st.lists(st.lists(INT64, min_size=3, max_size=3), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_a_request_of_json_and_binary_inputs_is_read(rows: list[list[int]], first: bool, second: bool) -> None:
    packed = np.array(rows, dtype="<i8").tobytes()
    given_inputs, behind = [], b""
    for name, binary in (("input_ids", first), ("attention_mask", second)):
        entry: dict[str, Any] = {"name": name, "shape": [len(rows), 3], "datatype": "INT64"}
        entry |= {"parameters": {"binary_data_size": len(packed)}} if binary else {"data": rows}
        behind += packed if binary else b""
        given_inputs.append(entry)
    text = json.dumps({"inputs": given_inputs}).encode()
    _, inputs = body.read(text + behind, len(text) if behind else None)
    assert [tensor.elements for tensor in inputs] == [[value for row in rows for value in row]] * 2
    with pytest.raises(InvalidRequest, match="belong to no input"):
        body.read(text + behind + b"x", len(text))


@given(st.lists(FP32, min_size=1), st.lists(st.text(max_size=5), min_size=1), st.booleans(), st.booleans())
def test_an_answer_says_where_its_tensors_are(
    numbers: list[float], words: list[str], first: bool, second: bool
) -> None:
    scores = Tensor("score", "FP32", (len(numbers),), array("f", numbers))
    labels = Tensor("label", "BYTES", (len(words),), [word.encode() for word in words])
    content, size = body.write({"model_name": "m"}, [(scores, first), (labels, second)])
    assert (size is None) == (not first and not second)
    at = len(content) if size is None else size
    for entry, tensor, binary in zip(
        json.loads(content[:at])["outputs"], (scores, labels), (first, second), strict=True
    ):
        assert entry["shape"] == list(tensor.shape)
        if binary:
            length = entry["parameters"]["binary_data_size"]
            assert content[at : at + length] == tensors.to_binary(tensor)
            at += length
        else:
            assert entry["data"] == tensors.to_json(tensor)
    assert at == len(content)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_compression_comes_back(data: bytes, encoding: str) -> None:
    packed, name = body.compress(data, f"br;q=1.0, {encoding}")
    assert name == encoding
    assert body.decompress(packed, encoding.upper(), 300) == data
    with pytest.raises(InvalidRequest, match="cut short"):
        body.decompress(packed[:-1], encoding, 300)
    with pytest.raises(InvalidRequest, match="goes on behind its end"):
        body.decompress(packed + b"x", encoding, 300)


def test_a_bomb_is_not_unpacked() -> None:
    packed, _ = body.compress(b"\0" * 1_000_000, "gzip")
    with pytest.raises(HTTPException, match="over 999,999 bytes") as caught:
        body.decompress(packed, "gzip", 999_999)
    assert caught.value.status_code == 413
    assert len(body.decompress(packed, "gzip", 1_000_000)) == 1_000_000


@pytest.mark.parametrize(
    ("accepted", "name"),
    [
        ("", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip; q=0.000, deflate;q=0.5", "deflate"),
        ("deflate, gzip", "deflate"),
        ("GZIP", "gzip"),
    ],
)
def test_what_the_client_accepts(accepted: str, name: str | None) -> None:
    assert body.compress(b"body", accepted)[1] == name


@pytest.mark.parametrize("values", [[True], [1.0], ["1"], [None], [2**63], [-(2**63) - 1], [{}]])
def test_what_is_no_integer_of_64_bits_is_refused(values: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match="takes integers of 64 bits alone"):
        tensors.from_json("t", "INT64", values)


def test_nesting_has_a_limit() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested over 8 deep"):
        tensors.from_json("t", "INT64", deep)


def test_shape_and_elements_agree_also_where_the_product_is_large() -> None:
    shape = [2**40, 2**40]
    text = json.dumps({"inputs": [{"name": "input_ids", "shape": shape, "datatype": "INT64", "data": [1]}]})
    with pytest.raises(InvalidRequest, match=f"{math.prod(shape):,}"):
        body.read(text.encode(), None)
