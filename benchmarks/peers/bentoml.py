"""BentoML with adaptive batching (its guides "Adaptive batching" and "Workers").

`max_latency_ms` keeps its default of a minute: it is not a wait for company but the age at which a request is refused,
and 5 ms would refuse nearly every one. How long a batch waits, BentoML works out itself.
"""

import os
import sys
from pathlib import Path

import bentoml

from benchmarks.peers.graph import BATCH, WORKERS, Classifier


@bentoml.service(name="bench", workers=WORKERS, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Service:
    """One instance a worker."""

    def __init__(self) -> None:
        self._classify = Classifier(Path(os.environ["ARTIFACT"]))

    @bentoml.api(batchable=True, max_batch_size=BATCH)
    def predict(self, texts: list[str]) -> list[str]:
        return self._classify(texts)


def main(artifact: str, port: int) -> None:
    os.environ |= {"ARTIFACT": artifact, "BENTOML_HOME": str(Path.cwd())}
    command = ["bentoml", "serve", f"{__spec__.name}:Service", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(Path(sys.executable).with_name("bentoml"), command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
