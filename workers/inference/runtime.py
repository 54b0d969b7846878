"""What an engine that runs a graph owes the worker. Knows no task, no tokenizer, no graph and no engine."""

import os
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from workers.inference.batcher import Batching

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


LANES = min(4, len(os.sched_getaffinity(0)))
"""Of a processor. Batches side by side, each on its own cores, are faster than one after the other on all of them: no
core waits for the slowest of the others. MiniLM-L6, 8 rows of like length, 2 cores: 784 rows/s against 505."""

ON_CPU = Batching(tokens=512, padding=0.1, start=8, lanes=LANES)
"""MiniLM-L6 on one core of two: 1 ms and 0.2 ms a token, so 64 tokens in a batch cost 15 % more than they must, 128
5 %, 512 nothing."""
PACKED_ON_CPU = replace(ON_CPU, start=24)
"""Where a padded token costs a twentieth of a real one (`packing.py`), more padding is cheaper than another batch: 64
callers of MiniLM-L6 get 1 % more answers than with 8. With 48 or 96 they get no more."""
ON_GPU = Batching(tokens=16_384, padding=0.5, start=400, lanes=1)
"""A GPU starts a kernel in the time it computes hundreds of tokens. Not measured."""


class RuntimeRefused(Exception):
    """The graph or the provider cannot serve; the message says why."""


class Runtime(Protocol):
    """A loaded graph."""

    batching: Batching

    def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
        """ids, mask [batch, sequence] -> logits [batch, labels] or [batch, sequence, labels].

        `alone` says that no other batch runs: this one may have all cores.
        """
