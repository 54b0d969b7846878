"""ONNX Runtime with TensorRT on one CUDA device, in half precision. Untried: no machine of the tests has one."""

import onnxruntime

from workers.inference.graph import Graph
from workers.inference.providers.device import OnDevice, memory
from workers.inference.runtime import Runtime

__all__ = ["available", "load", "memory"]

NAME = "TensorrtExecutionProvider"


def available() -> bool:
    """Whether this build of ONNX Runtime has TensorRT. Its libraries may still be missing, which `load` finds out."""
    return NAME in onnxruntime.get_available_providers()


def load(graph: Graph) -> Runtime:
    providers: list[str | tuple[str, dict[str, str]]] = [
        (NAME, {"trt_fp16_enable": "1"}),
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    return OnDevice(graph, providers)
