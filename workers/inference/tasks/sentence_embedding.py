"""Sentence embedding: one row a text; the graph pools and normalizes, here vectors are cut and packed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.contracts.manifest import Serving
from workers.codecs.text import TextCodec
from workers.inference.runtime import Float32
from workers.inference.tasks.base import Prepared, token_ids


def prepare(codec: TextCodec, serving: Serving, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Prepared:
    """Inputs: `"text"`, `{"text"}` or `{"input_ids"}`. Outputs: bytes, float32 little-endian, a vector of length 1.

    Parameter `dimensions`: the first so many numbers, of length 1 again; all where there are no more. Bytes:
    1,024 vectors of 384 numbers are packed and unpacked in 0.4 ms, number by number in 26.
    """
    del serving  # the graph says the size
    dimensions = parameters.get("dimensions")

    def finish(vectors: list[Float32]) -> list[Any]:
        values = np.stack(vectors)
        if dimensions is not None and dimensions < values.shape[1]:
            values = values[:, :dimensions]
            # The graph's own floor: a vector of zeros stays one.
            values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return [row.tobytes() for row in values.astype("<f4", copy=False)]

    return Prepared(token_ids(codec, inputs), finish)
