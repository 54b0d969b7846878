"""MLServer with adaptive batching and parallel inference (its user guide's two pages of these names)."""

import json
import os
import sys
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.graph import BATCH, WAIT_SECONDS, WORKERS, Classifier


class Model(MLModel):
    """The runtime that `model-settings.json` names."""

    async def load(self) -> bool:
        self._classify = Classifier(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        output = StringCodec.encode_output("label", self._classify(texts))
        return InferenceResponse(model_name=self.name, outputs=[output])


def main(artifact: str, port: int) -> None:
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": 0,
        "metrics_endpoint": None,
        "parallel_workers": WORKERS,
    }
    model = {
        "name": "bench",
        "implementation": f"{__spec__.name}.Model",
        "max_batch_size": BATCH,
        "max_batch_time": WAIT_SECONDS,
        "parameters": {"uri": artifact},
    }
    Path("settings.json").write_text(json.dumps(settings))
    Path("model-settings.json").write_text(json.dumps(model))
    os.execv(Path(sys.executable).with_name("mlserver"), ["mlserver", "start", "."])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
