"""OpenVINO on the CPU, the float32 graph run in bf16: three times ONNX Runtime where the processor has AMX tiles.

Needs no other artifact. Where bf16 is emulated it would be slower, so the processor must say that it has it.
"""

import importlib.util
import os
import sys
from queue import SimpleQueue
from threading import Lock
from typing import Any, cast

import numpy as np

from workers.inference.graph import Graph
from workers.inference.runtime import LANES, ON_CPU, Float32, Int64, Runtime, RuntimeRefused

_KERNELS = 300
"""Kernels kept for shapes that were seen, by each stream. OpenVINO's own 5,000 took 175 MB more for MiniLM-L6 after a
minute of texts of all lengths, and made 2 % more answers."""


def available() -> bool:
    """Whether OpenVINO is installed and this processor computes bf16 itself."""
    if importlib.util.find_spec("openvino") is None:
        return False
    return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def load(graph: Graph) -> Runtime:
    return _OpenVino(graph)


def memory(graph_size: int) -> int:
    """The weights twice, laid out anew, and 256 MiB of kernels and buffers for all the shapes that it has seen: 519 MB
    for MiniLM-L6 after thousands of batches."""
    return graph_size * 3 + (256 << 20)


def _openvino() -> Any:
    """The package without its conversion tools, which would bring one that reports their use over the network."""
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))  # an import of it fails, which openvino allows for
    return importlib.import_module("openvino")


class _OpenVino:
    """A model compiled twice: for batches side by side, each on one lane's cores, and for one batch on all of them."""

    batching = ON_CPU

    def __init__(self, graph: Graph) -> None:
        openvino = _openvino()
        cores = len(os.sched_getaffinity(0))
        options = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": cores,
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS,
        }
        try:
            core = openvino.Core()
            model = core.read_model(graph.model)
            narrow = core.compile_model(model, "CPU", options | {"NUM_STREAMS": LANES})
            wide = core.compile_model(model, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
            self._lanes: SimpleQueue[Any] = SimpleQueue()
            for _ in range(LANES):
                self._lanes.put(narrow.create_infer_request())
            self._wide, self._lock = wide.create_infer_request(), Lock()
        except Exception as exc:  # it raises RuntimeError and its own
            raise RuntimeRefused(f"OpenVINO refuses the graph: {exc}") from exc
        graph.signature.check_inputs([i.get_any_name() for i in narrow.inputs])
        self._signature = graph.signature

    def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
        """See `Runtime.run`."""
        if alone:
            with self._lock:
                return self._infer(self._wide, ids, mask)
        request = self._lanes.get()
        try:
            return self._infer(request, ids, mask)
        finally:
            self._lanes.put(request)

    def _infer(self, request: Any, ids: Int64, mask: Int64) -> Float32:
        # Copied into the request's own tensors. With `share_inputs` it keeps pointing into arrays that are freed by its
        # next batch, which ended the process (2026.4.1, batches of changing shapes); handing it the arrays to copy
        # takes 0.15 ms longer.
        for name, values in self._signature.feeds(ids, mask).items():
            tensor = request.get_tensor(name)
            tensor.shape = values.shape
            tensor.data[:] = values
        request.infer()
        # A copy: the request's own buffer is overwritten by its next batch.
        return np.array(request.get_tensor(self._signature.output).data, dtype=np.float32)
