"""Other servers with the same graph, for comparison: how each is installed, started and asked.

`PEERS` is the table. Each peer has one file here, which runs inside the peer's own virtual environment and imports
only that peer and `graph.py` (onnxruntime, tokenizers, numpy): the versions that a peer wants never meet ours. This
file and `processes.py` run in ours. Every peer gets two workers of one thread, batches of up to 32 that wait 5 ms at
most, its documented settings for throughput, the loopback interface, and no usage reports, request logs or metrics.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_RUNTIME = ("onnxruntime==1.32.0", "tokenizers==0.23.3", "numpy==2.4.6")


@dataclass(frozen=True)
class Peer:
    """One peer. `label` reads the answer to `body`."""

    requirements: tuple[str, ...]
    module: str
    """Started as `python -m module ARTIFACT PORT` in an empty folder of its own."""
    path: str
    body: Callable[[str], bytes]
    label: Callable[[bytes], str]
    env: dict[str, str] = field(default_factory=dict)

    def installed(self, venv: Path) -> bool:
        """Exactly these requirements were installed into `venv`."""
        stamp = venv / STAMP
        return stamp.exists() and stamp.read_text().split() == [*self.requirements]


STAMP = "installed.txt"
"""Written into a virtual environment when all of it is there."""


def _open_inference(text: str) -> bytes:
    return json.dumps({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}).encode()


PEERS: dict[str, Peer] = {
    "mlserver": Peer(
        # With uvloop 0.22 and later its parallel workers end at once.
        requirements=("mlserver==1.7.1", "uvloop==0.21.0", *_RUNTIME),
        module="benchmarks.peers.mlserver",
        path="/v2/models/bench/infer",
        body=_open_inference,
        label=lambda answer: str(json.loads(answer)["outputs"][0]["data"][0]),
    ),
    "bentoml": Peer(
        requirements=("bentoml==1.4.39", *_RUNTIME),
        module="benchmarks.peers.bentoml",
        path="/predict",
        body=lambda text: json.dumps({"texts": [text]}).encode(),
        label=lambda answer: str(json.loads(answer)[0]),
        env={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    "litserve": Peer(
        requirements=("litserve==0.2.19", *_RUNTIME),
        module="benchmarks.peers.litserve",
        path="/predict",
        body=lambda text: json.dumps({"text": text}).encode(),
        label=lambda answer: str(json.loads(answer)["label"]),
    ),
    "ray": Peer(
        requirements=("ray[serve]==2.60.0", *_RUNTIME),
        module="benchmarks.peers.ray_serve",
        path="/",
        body=lambda text: json.dumps({"text": text}).encode(),
        label=lambda answer: str(json.loads(answer)["label"]),
        env={
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            # Despite its name it also holds on Linux, and is what keeps all of Ray's ports on the loopback interface.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        },
    ),
}
