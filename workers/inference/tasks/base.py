"""What every task of the inference worker is: a function from inputs to rows, and from logits to outputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.contracts.manifest import Serving
from workers.codecs.text import TextCodec
from workers.inference.runtime import Float32


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to run."""

    rows: list[list[int]]
    """Token ids, special tokens included; one input may need several rows."""
    finish: Callable[[list[Float32]], list[Any]]
    """Each row's logits, [labels] or [sequence, labels] without padding -> an output for each input."""


Prepare = Callable[[TextCodec, Serving, Sequence[Any], Mapping[str, Any]], Prepared]


class BadInput(Exception):
    """Input `index` of a request cannot be read; the gateway's checks let it through."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def text_of(index: int, value: Any) -> str:
    """An input's text: the string itself or the field `text`. Raises `BadInput`."""
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise BadInput(index, f"an input is a string or {{'text': string}}, this is {type(value).__name__}")
    return text


def token_ids(codec: TextCodec, inputs: Sequence[Any]) -> list[list[int]]:
    """A row an input: its text's tokens, cut at the model's length, or the ids it gives as `{"input_ids"}`.

    Given ids are complete, special tokens included. Raises `BadInput`.
    """
    given = {i: _given_ids(codec, i, v) for i, v in enumerate(inputs) if isinstance(v, dict) and "input_ids" in v}
    rows = iter(codec.ids([text_of(i, v) for i, v in enumerate(inputs) if i not in given]))
    return [given[i] if i in given else next(rows) for i in range(len(inputs))]


def _given_ids(codec: TextCodec, index: int, value: Mapping[str, Any]) -> list[int]:
    ids: list[int] = value["input_ids"]
    if not 1 <= len(ids) <= codec.max_length:
        raise BadInput(index, f"{len(ids):,} token ids were given; this model takes 1 to {codec.max_length:,}")
    for token in ids:
        if not 0 <= token < codec.vocabulary:
            raise BadInput(index, f"there is no token {token}; this model has the ids 0 to {codec.vocabulary - 1:,}")
    return ids
