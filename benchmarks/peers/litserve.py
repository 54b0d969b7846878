"""LitServe with batching, two workers and its ZeroMQ queue (its pages "Batching" and "LitServer": `fast_queue` for
more than 100 requests a second; as many HTTP processes as workers, its default)."""

import sys
from pathlib import Path
from typing import Any

import litserve

from benchmarks.peers.graph import BATCH, WAIT_SECONDS, WORKERS, Classifier


class Api(litserve.LitAPI):
    """One instance a worker."""

    def setup(self, device: str) -> None:  # noqa: ARG002  (the framework's name)
        self._classify = Classifier(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["text"])

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, x: list[str]) -> list[str]:
        return self._classify(x)

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        return {"label": output}


def main(port: int) -> None:
    api = Api(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=WORKERS, fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[2]))
