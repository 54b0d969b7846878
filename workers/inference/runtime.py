"""What an engine that runs a graph owes the worker. Knows no task, no tokenizer, no torch and no engine.

An artifact's graph is read as bytes and must be whole: external data would let a file outside the sealed
manifest into the model, so it is refused.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from workers.inference.batcher import Batching

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


LANES = min(4, len(os.sched_getaffinity(0)))
"""Of a processor. Batches side by side, each on its own cores, are faster than one after the other on all of them: no
core waits for the slowest of the others. MiniLM-L6, 8 rows of like length, 2 cores: 784 rows/s against 505."""

ON_CPU = Batching(tokens=512, padding=0.1, start=5, lanes=LANES)
"""MiniLM-L6 on one core of two: 1 ms and 0.2 ms a token, so 64 tokens in a batch cost 15 % more than they must, 128
5 %, 512 nothing."""
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


@dataclass(frozen=True)
class Graph:
    """An artifact's graph, checked. Raises `RuntimeRefused` when it is not to be run."""

    model: bytes
    inputs: Sequence[str]
    """Of the manifest; int64 [batch, sequence] each."""
    output: str

    def __post_init__(self) -> None:
        refuse_external_data(self.model)
        unknown = set(self.inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise RuntimeRefused(
                f"the manifest names the inputs {sorted(unknown)}; known are input_ids, attention_mask and "
                "token_type_ids: export the model again"
            )

    def check_inputs(self, found: Sequence[str]) -> None:
        """Raises `RuntimeRefused` when the engine sees other inputs than the manifest names."""
        if set(found) != set(self.inputs):
            raise RuntimeRefused(
                f"the graph takes {sorted(found)}, the manifest says {sorted(self.inputs)}: export it again"
            )

    def feeds(self, ids: Int64, mask: Int64) -> dict[str, Int64]:
        """The arrays by input name; token types are all zero."""
        known = {"input_ids": ids, "attention_mask": mask}
        return {name: known[name] if name in known else np.zeros_like(ids) for name in self.inputs}


def refuse_external_data(model: bytes) -> None:
    """Raises `RuntimeRefused` when a tensor of the graph lives in another file, or the bytes are no model."""
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as exc:  # protobuf's DecodeError, which moved between versions
        raise RuntimeRefused(f"model.onnx is not an ONNX model: {exc}") from exc
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise RuntimeRefused(f"tensor {tensor.name!r} keeps its data in another file: export the graph in one file")


def _tensors(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _tensors(inner)
