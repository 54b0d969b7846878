"""Bodies of an inference call: compression, the JSON part and the tensors behind it, one way and the other.

Knows the protocol's tensors (`app/contracts/oip.py`) and no route, header object or model.
"""

import gzip
import math
import zlib
from typing import Any, TypeVar

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from app.api.oip.tensors import from_binary, from_json, to_binary, to_json
from app.api.schemas.oip import InferRequest, RequestInput
from app.contracts.oip import INPUTS, TEXT, Tensor
from app.core.errors import InvalidRequest

# How zlib names the two containers: gzip is deflate with 16 added.
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Text at level 1 is 15 % larger than at the usual 6, in a quarter of the time.
_LEVEL = 1

M = TypeVar("M", bound=BaseModel)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The body under its `Content-Encoding`. Never makes more than `limit` bytes of it: HTTP 413."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW:
        raise InvalidRequest(f"Content-Encoding is {encoding[:64]!r}: send gzip, deflate (zlib) or no compression")
    reader = zlib.decompressobj(_WINDOW[encoding])
    try:
        found = reader.decompress(body, limit + 1)
    except zlib.error as exc:
        raise InvalidRequest(f"the body is not {encoding} ({exc}): mend it or drop Content-Encoding") from exc
    if len(found) > limit:
        message = f"the body is over {limit:,} bytes when decompressed: send fewer inputs a call"
        raise HTTPException(413, message)
    if not reader.eof or reader.unused_data:
        raise InvalidRequest(f"the {encoding} body is cut short or goes on behind its end: send one whole stream")
    return found


def compress(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """The body in the first encoding of `Accept-Encoding` that we have, and its name."""
    for entry in accepted.lower().split(","):
        name, _, weight = entry.replace(" ", "").partition(";q=")
        if name in _WINDOW and (not weight or weight.strip("0.")):
            return (gzip.compress(body, _LEVEL, mtime=0) if name == "gzip" else zlib.compress(body, _LEVEL)), name
    return body, None


def parsed(model: type[M], body: bytes) -> M:
    """The body as `model`; an empty one as an empty object. Raises `RequestValidationError`."""
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as exc:
        raise RequestValidationError(exc.errors(include_url=False)) from exc


def read(body: bytes, json_size: int | None) -> tuple[InferRequest, list[Tensor]]:
    """A request and its inputs; `json_size` is the header `Inference-Header-Content-Length`.

    None: all of the body is JSON. 0: all of it is one text.
    """
    if json_size == 0:
        bare = RequestInput(name=TEXT.name, shape=[1], datatype="BYTES")
        return InferRequest(inputs=[bare]), [Tensor(TEXT.name, "BYTES", (1,), [body])]
    if json_size is not None and json_size > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {json_size:,} and the body has {len(body):,} bytes: give the length "
            "of the JSON before the binary data, uncompressed"
        )
    request = parsed(InferRequest, body[:json_size])
    at, inputs = len(body) if json_size is None else json_size, []
    for number, given in enumerate(request.inputs):
        size = given.parameters.binary_data_size
        data = None if size is None else body[at : at + size]
        at += size or 0
        if at > len(body):
            raise InvalidRequest(
                f"inputs[{number}] has binary_data_size {size:,} and {len(data or b''):,} bytes are left: send the "
                "binary data behind the JSON, and the JSON's length as Inference-Header-Content-Length"
            )
        inputs.append(_tensor(f"inputs[{number}]", given, data))
    if at < len(body):
        raise InvalidRequest(f"{len(body) - at:,} bytes of binary data belong to no input: count each binary_data_size")
    if len({tensor.name for tensor in inputs}) < len(inputs):
        raise InvalidRequest("an input is given twice: give each once", param="inputs")
    return request, inputs


def _tensor(where: str, given: RequestInput, data: bytes | None) -> Tensor:
    spec = INPUTS.get(given.name)
    if spec is None:
        raise InvalidRequest(
            f"there is no input {given.name!r}: give text, or input_ids and attention_mask", param=f"{where}.name"
        )
    if given.datatype != spec.datatype:
        raise InvalidRequest(f"{spec.name} is {given.datatype}: give it as {spec.datatype}", param=f"{where}.datatype")
    if len(given.shape) != len(spec.shape):
        raise InvalidRequest(
            f"{spec.name} has the shape {given.shape}; it takes {list(spec.shape)}, -1 being free",
            param=f"{where}.shape",
        )
    if (data is None) == (given.data is None):
        raise InvalidRequest(f"{where} must have one of data and parameters.binary_data_size", param=where)
    if data is not None:
        elements = from_binary(where, spec.datatype, data)
    else:
        elements = from_json(where, spec.datatype, given.data or [])
    if len(elements) != math.prod(given.shape):
        raise InvalidRequest(
            f"{where} has {len(elements):,} elements; its shape {given.shape} holds {math.prod(given.shape):,}: make "
            "them agree",
            param=f"{where}.shape",
        )
    return Tensor(spec.name, spec.datatype, tuple(given.shape), elements)


def write(head: dict[str, Any], outputs: list[tuple[Tensor, bool]]) -> tuple[bytes, int | None]:
    """The answer's body and, when a tensor is binary (the flag), the length of its JSON part."""
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for tensor, as_binary in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if as_binary:
            binary.append(to_binary(tensor))
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = to_json(tensor)
        described.append(entry)
    text = msgspec.json.encode({**head, "outputs": described})
    return b"".join([text, *binary]), (len(text) if binary else None)
