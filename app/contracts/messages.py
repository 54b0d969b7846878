"""What crosses the inference queue, as msgpack arrays: a request to the workers, a reply to one gateway.

Bytes, never pickles; the worker checks nothing that the gateway has checked already.
"""

from typing import Any

import msgspec


class PredictRequest(msgspec.Struct, array_like=True, frozen=True):
    """Some inputs of one caller for one version."""

    id: str
    reply_to: str
    version_id: str
    deadline: float
    """Unix seconds; past it nobody waits for the answer and nothing is computed."""
    inputs: list[Any]
    """One value an input, already in its task's form (a string, or a map of named fields)."""
    parameters: dict[str, Any]
    caller: str = ""
    """Id of the API key: callers take turns."""
    queued_at: float = 0.0
    """Unix seconds."""
    model: str = ""
    """The version's name, for the worker's metrics."""


class PredictReply(msgspec.Struct, array_like=True, frozen=True):
    """The rows of one request, or why there are none."""

    id: str
    outputs: list[Any] | None = None
    tokens: int = 0
    batch_size: int = 0
    error: str | None = None
    """Wire code: `deadline_exceeded`, `model_load_failed`, `invalid_input`, `internal_error`."""
    message: str = ""
    param: str | None = None


_ENCODER = msgspec.msgpack.Encoder()
_REQUEST = msgspec.msgpack.Decoder(PredictRequest)
_REPLY = msgspec.msgpack.Decoder(PredictReply)


def encode(message: PredictRequest | PredictReply) -> bytes:
    return _ENCODER.encode(message)


def decode_request(data: bytes) -> PredictRequest:
    """Raises `msgspec.DecodeError` on foreign bytes."""
    return _REQUEST.decode(data)


def decode_reply(data: bytes) -> PredictReply:
    """Raises `msgspec.DecodeError` on foreign bytes."""
    return _REPLY.decode(data)
