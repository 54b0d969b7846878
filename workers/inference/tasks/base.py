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
