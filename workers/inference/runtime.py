"""One small interface over the engines that run a graph. Knows no task, no tokenizer and no torch.

An artifact's graph is read as bytes and must be whole: external data would let a file outside the sealed
manifest into the model, so it is refused.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from app.core.logging import get_logger

log = get_logger(__name__)

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Provider = Literal["auto", "onnxruntime-cpu", "cuda"]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class RuntimeRefused(Exception):
    """The graph or the provider cannot serve; the message says why."""


class Runtime(Protocol):
    """A loaded graph."""

    padding_limit: float
    """The share of padding in a batch beyond which two batches are faster than one."""

    def run(self, ids: Int64, mask: Int64) -> Float32:
        """ids, mask [batch, sequence] -> logits [batch, labels] or [batch, sequence, labels]."""


class OnnxRuntime:
    """ONNX Runtime on the CPU or a CUDA device."""

    def __init__(self, model: bytes, *, inputs: Iterable[str], output: str, provider: Provider) -> None:
        """Raises `RuntimeRefused`, also where CUDA was asked for and ONNX Runtime fell back to the CPU."""
        refuse_external_data(model)
        available = onnxruntime.get_available_providers()
        cuda = provider == "cuda" or (provider == "auto" and _CUDA in available)
        wanted = [_CUDA, _CPU] if cuda else [_CPU]
        try:
            providers = [name for name in wanted if name in available]
            self._session = onnxruntime.InferenceSession(model, _options(), providers=providers)
        except Exception as exc:  # its error types share no base of their own
            raise RuntimeRefused(f"ONNX Runtime refuses the graph: {exc}") from exc
        got = self._session.get_providers()
        if got[0] != wanted[0] and provider == "auto":
            log.warning("cuda_unusable", running_on=got[0])
        elif got[0] != wanted[0]:
            raise RuntimeRefused(
                f"{wanted[0]} was asked for and ONNX Runtime fell back to {got[0]}: install onnxruntime-gpu "
                "and its CUDA libraries, or set MODELWRIGHT_PROVIDER=onnxruntime-cpu"
            )
        self._inputs, self._output = list(inputs), output
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown or {i.name for i in self._session.get_inputs()} != set(self._inputs):
            raise RuntimeRefused(
                f"the graph takes {[i.name for i in self._session.get_inputs()]}, the manifest says "
                f"{self._inputs}; known are input_ids, attention_mask and token_type_ids: export it again"
            )
        # A GPU starts a kernel in the time it computes hundreds of tokens: padding is cheaper than a batch.
        self.padding_limit = 0.5 if got[0] == _CUDA else 0.1

    def run(self, ids: Int64, mask: Int64) -> Float32:
        """See `Runtime.run`."""
        feeds: dict[str, Int64] = {}
        for name in self._inputs:
            match name:
                case "input_ids":
                    feeds[name] = ids
                case "attention_mask":
                    feeds[name] = mask
                case _:
                    feeds[name] = np.zeros_like(ids)
        logits: Float32 = self._session.run([self._output], feeds)[0]
        return logits


def _options() -> "onnxruntime.SessionOptions":
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1  # an encoder is one chain of nodes
    options.enable_mem_pattern = False  # plans memory for one shape; here nearly every batch has its own
    # Spinning threads burn the cores that gateway and tokenizer need, once for each loaded version.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings about unused initializers are of no use to an operator
    return options


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
