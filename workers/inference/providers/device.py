"""ONNX Runtime on one device: batches one after the other, in few shapes. What `cuda.py` and `tensorrt.py` share.

A device prepares memory, or a whole engine, for each new shape, so rows and tokens are rounded up. Untried on a real
device: the tests run it on the CPU.
"""

from threading import Lock

import numpy as np

from workers.inference.graph import Graph
from workers.inference.providers.session import Session
from workers.inference.runtime import ON_GPU, Float32, Int64

_TOKENS = 16
"""Tokens are rounded up to a multiple of this: the tile of half-precision matrix units."""


class OnDevice:
    """Holds the device's only session for its graph."""

    batching = ON_GPU

    def __init__(self, graph: Graph, providers: list[str | tuple[str, dict[str, str]]]) -> None:
        """Raises `RuntimeRefused`, also where ONNX Runtime fell back from the first provider."""
        self._session, self._lock = Session(graph, providers, threads=1), Lock()

    def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:  # noqa: ARG002  (it always is)
        """See `Runtime.run`."""
        rows, tokens = ids.shape
        with self._lock:
            logits = self._session.run_bound(*round_up(ids, mask))
        return logits[:rows] if logits.ndim == 2 else logits[:rows, :tokens]


def memory(graph_size: int) -> int:
    """As on the processor: a guess."""
    return int(graph_size * 2.8) + (32 << 20)


def round_up(ids: Int64, mask: Int64) -> tuple[Int64, Int64]:
    """Rows to a power of two, tokens to a multiple of 16. Added rows have one token: attention over none is NaN."""
    rows, tokens = ids.shape
    more = ((0, (1 << (rows - 1).bit_length()) - rows), (0, -tokens % _TOKENS))
    ids, mask = np.pad(ids, more), np.pad(mask, more)
    mask[rows:, 0] = 1
    return ids, mask
