"""ONNX Runtime on one CUDA device. Untried: no machine of the tests has one."""

import onnxruntime

from workers.inference.graph import Graph
from workers.inference.providers.device import OnDevice, memory
from workers.inference.runtime import Runtime

__all__ = ["available", "load", "memory"]

NAME = "CUDAExecutionProvider"


def available() -> bool:
    """Whether this build of ONNX Runtime has CUDA. A device may still be missing, which `load` finds out."""
    return NAME in onnxruntime.get_available_providers()


def load(graph: Graph) -> Runtime:
    return OnDevice(graph, [NAME, "CPUExecutionProvider"])
