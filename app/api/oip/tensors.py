"""Tensors of the Open Inference Protocol as bytes and as JSON: pure functions over the datatypes that we serve.

Binary data is little-endian, row-major and without padding; a BYTES element is its length (4 bytes) and itself.
Knows no request, no model and no header.
"""

import struct
import sys
from array import array
from collections.abc import Iterable
from typing import Any

from app.contracts.oip import Datatype, Tensor
from app.core.errors import InvalidRequest

_INT64 = 8
_LENGTH = struct.Struct("<I")
_MAX_NESTING = 8


def from_binary(where: str, datatype: Datatype, data: bytes) -> list[bytes] | list[int]:
    """The elements of a BYTES or INT64 tensor. Raises `InvalidRequest` when the bytes end in mid-element."""
    if datatype == "BYTES":
        return _byte_elements(where, data)
    if len(data) % _INT64:
        raise InvalidRequest(
            f"{where} has {len(data):,} bytes of binary data; INT64 takes {_INT64} an element: send a multiple",
            param=where,
        )
    return list(struct.unpack(f"<{len(data) // _INT64}q", data))


def _byte_elements(where: str, data: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        size = _LENGTH.unpack_from(data, at)[0] if start <= len(data) else 0
        at = start + size
        if at > len(data):
            raise InvalidRequest(
                f"{where}: element {len(found)} ends at byte {at:,} and the binary data at {len(data):,}: send each "
                "element as its length (4 bytes, little-endian) and itself, and their sum as binary_data_size",
                param=where,
            )
        found.append(data[start:at])
    return found


def from_json(where: str, datatype: Datatype, data: list[Any]) -> list[bytes] | list[int]:
    """The elements of a BYTES or INT64 tensor, nested or flat. Raises `InvalidRequest` for one of another kind."""
    leaves = list(_leaves(where, data))
    if datatype == "BYTES":
        if all(type(leaf) is str for leaf in leaves):
            return [leaf.encode() for leaf in leaves]
        needed = "strings"
    else:
        if all(type(leaf) is int and -(2**63) <= leaf < 2**63 for leaf in leaves):
            return leaves
        needed = "integers of 64 bits"
    kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves}))
    raise InvalidRequest(f"{where}.data holds {kinds}; {datatype} takes {needed} alone", param=f"{where}.data")


def _leaves(where: str, data: list[Any], depth: int = 1) -> Iterable[Any]:
    if depth > _MAX_NESTING:
        raise InvalidRequest(
            f"{where}.data is nested over {_MAX_NESTING} deep: nest as deep as `shape` is long, or not at all",
            param=f"{where}.data",
        )
    for value in data:
        if isinstance(value, list):
            yield from _leaves(where, value, depth + 1)
        else:
            yield value


def to_binary(tensor: Tensor) -> bytes:
    """The elements of a BYTES or FP32 tensor as the protocol's binary data."""
    if isinstance(tensor.elements, array):
        return (tensor.elements if sys.byteorder == "little" else _swapped(tensor.elements)).tobytes()
    return b"".join(_LENGTH.pack(len(element)) + element for element in tensor.elements)


def to_json(tensor: Tensor) -> list[Any]:
    """The elements of a BYTES or FP32 tensor as JSON values, flat."""
    if isinstance(tensor.elements, array):
        return tensor.elements.tolist()
    return [element.decode() for element in tensor.elements]


def _swapped(numbers: "array[float]") -> "array[float]":
    copy = array("f", numbers)
    copy.byteswap()
    return copy
