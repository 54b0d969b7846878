"""The engines that can run a graph: one file each, one line in the table. Which one a version gets: `choice.py`.

Each module has `available()`, which may import the engine, `load(graph)`, and `memory(graph_size)`: bytes that a loaded
version takes, estimated, of those of its graph. A module is imported when its engine is asked for: none is needed for
the others to work.
"""

from importlib import import_module
from types import ModuleType

from app.contracts.providers import Provider
from workers.inference.graph import Graph
from workers.inference.runtime import Runtime, RuntimeRefused

PROVIDERS: dict[Provider, str] = {
    "tensorrt": "workers.inference.providers.tensorrt",
    "cuda": "workers.inference.providers.cuda",
    "openvino-bf16": "workers.inference.providers.openvino_bf16",
    "onnxruntime-cpu": "workers.inference.providers.onnxruntime_cpu",
}
"""The last one is the reference that the others are compared with, and runs everywhere."""
REFERENCE: Provider = "onnxruntime-cpu"


def available() -> list[Provider]:
    """Those that this machine can run, in the table's order."""
    return [name for name in PROVIDERS if _module(name).available()]


def load(provider: Provider, graph: Graph) -> Runtime:
    """Raises `RuntimeRefused` when the provider is not there or refuses the graph."""
    module = _module(provider)
    if not module.available():
        raise RuntimeRefused(
            f"MODELWRIGHT_PROVIDER={provider} cannot run here; this machine has {', '.join(available())}: choose one "
            "of these or `auto`, or install what it needs"
        )
    runtime: Runtime = module.load(graph)
    return runtime


def memory(provider: Provider, graph_size: int) -> int:
    """Bytes that a loaded version takes in that provider, estimated; `graph_size` in bytes."""
    found: int = _module(provider).memory(graph_size)
    return found


def _module(provider: Provider) -> ModuleType:
    return import_module(PROVIDERS[provider])
