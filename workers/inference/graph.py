"""An artifact's graph as engines get it: checked, and in its fused form where it has one. Knows no engine.

A graph is read as bytes and must be whole: external data would let a file outside the sealed manifest into the model,
so it is refused.
"""

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import onnx

from app.contracts.manifest import FUSED_NAME, FUSED_OF, MODEL_NAME
from workers.inference.packing import pack
from workers.inference.runtime import Int64, RuntimeRefused
from workers.inference.wire import weights

_KNOWN = frozenset({"input_ids", "attention_mask", "token_type_ids"})


@dataclass(frozen=True)
class Signature:
    """What goes in and out; all that a loaded version keeps of its graph."""

    inputs: Sequence[str]
    """Of the manifest; int64 [batch, sequence] each."""
    output: str

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


class Graph:
    """Lives as long as a load: engines keep weights of their own."""

    def __init__(self, model: bytes, inputs: Sequence[str], output: str, fused: bytes | None = None) -> None:
        """`model` and `fused` are the artifact's files (`workers/training/fusion.py`); a fused form of another
        `model.onnx` is overlooked. Raises `RuntimeRefused` when the graph is not to be run.
        """
        self.signature = Signature(inputs, output)
        if unknown := set(inputs) - _KNOWN:
            raise RuntimeRefused(
                f"the manifest names the inputs {sorted(unknown)}; known are input_ids, attention_mask and "
                "token_type_ids: export the model again"
            )
        whole = _checked(model, MODEL_NAME)
        self.size = len(model)
        """Bytes of `model.onnx`."""
        self.model = model
        """What engines read."""
        self._fused: onnx.ModelProto | None = None
        if fused is not None and _made_of(found := _checked(fused, FUSED_NAME), model):
            own = {weight.name for weight in found.graph.initializer}
            self._fused, self._weights = found, weights(model, _read(found) - own)
            self._shapes = {w.name: tuple(w.dims) for w in (*whole.graph.initializer, *found.graph.initializer)}
            self.model = found.SerializeToString() + self._weights

    def packed(self) -> "Graph":
        """The same for batches of several rows (`packing.py`); itself where there is nothing to pack."""
        if self._fused is None:
            return self
        fused = onnx.ModelProto()
        fused.CopyFrom(self._fused)
        if not pack(fused, self._shapes):
            return self
        other = copy(self)
        other.model = fused.SerializeToString() + self._weights
        return other


def _made_of(fused: onnx.ModelProto, model: bytes) -> bool:
    of = {entry.key: entry.value for entry in fused.metadata_props}.get(FUSED_OF)
    return of == hashlib.sha256(model).hexdigest()


def _read(model: onnx.ModelProto) -> set[str]:
    """All names that some node reads."""
    return {name for node in model.graph.node for name in node.input}


def _checked(data: bytes, name: str) -> onnx.ModelProto:
    """Raises `RuntimeRefused` when a tensor of the graph lives in another file, or the bytes are no model."""
    try:
        model = onnx.load_model_from_string(data)
    except Exception as exc:  # protobuf's DecodeError, which moved between versions
        raise RuntimeRefused(f"{name} is not an ONNX model: {exc}") from exc
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise RuntimeRefused(f"tensor {tensor.name!r} keeps its data in another file: export the graph in one file")
    return model


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
