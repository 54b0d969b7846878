"""ONNX Runtime on the CPU, float32: the reference that every other provider is compared with.

Two sessions hold the same graph, because a session's threads are fixed when it is made. `narrow` runs each batch on one
lane's cores, several batches side by side; `wide` runs a batch that has nobody beside it on all cores (MiniLM-L6, one
short text, 2 cores: 2.4 ms against 4.7 ms). That is most often a single row, so only `narrow` is packed. The price is
the weights twice in memory.
"""

import os

from workers.inference.graph import Graph
from workers.inference.providers.session import Session
from workers.inference.runtime import LANES, ON_CPU, PACKED_ON_CPU, Float32, Int64, Runtime

_CPU = "CPUExecutionProvider"


def available() -> bool:
    return True


def load(graph: Graph) -> Runtime:
    return _OnCpu(graph)


def memory(graph_size: int) -> int:
    """The weights twice, laid out anew, and 32 MiB of buffers and tokenizer: 284 MB for MiniLM-L6."""
    return int(graph_size * 2.8) + (32 << 20)


class _OnCpu:
    def __init__(self, graph: Graph) -> None:
        cores = len(os.sched_getaffinity(0))
        packed = graph.packed()
        self.batching = ON_CPU if packed is graph else PACKED_ON_CPU
        self._narrow = Session(packed, [_CPU], threads=cores // LANES)
        self._wide = Session(graph, [_CPU], threads=cores) if LANES > 1 else self._narrow

    def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
        """See `Runtime.run`."""
        return (self._wide if alone else self._narrow).run(ids, mask)
