"""What a loaded version takes in memory, after batches of hundreds of shapes, is within the worker's estimate."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from transformers import AutoConfig, AutoModel

from app.contracts.manifest import FUSED_NAME
from app.contracts.providers import Provider
from tests import toy_artifact
from workers.inference import providers
from workers.inference.graph import Graph
from workers.training.encoders import SentenceEncoder
from workers.training.export import INPUTS, OUTPUTS, export_onnx

VOCABULARY = 4000
SIZES: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
SHAPES = 200
TOKENS = 512


@pytest.mark.parametrize("provider", providers.available())
def test_hundreds_of_shapes_take_no_more_than_the_estimate(provider: Provider, tmp_path: Path) -> None:
    config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, **SIZES)
    encoder = SentenceEncoder(AutoModel.from_config(config))  # type: ignore[no-untyped-call]
    export_onnx(encoder, tmp_path / "model.onnx", pad_token_id=1, outputs=OUTPUTS)
    toy_artifact.build(tmp_path / "first")
    command = [sys.executable, "-m", "tests.conformance.test_memory", provider, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = int(done.stdout.splitlines()[-1])
    allowed = providers.memory(provider, (tmp_path / "model.onnx").stat().st_size)
    assert 0 < grown <= allowed, f"{grown >> 20} of {allowed >> 20} MiB"


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(provider: Provider, folder: Path) -> int:
    """Bytes that the version in `folder` adds to a process that has another one."""
    first = providers.load(provider, Graph((folder / "first" / "model.onnx").read_bytes(), INPUTS, "logits"))
    ids = np.full((4, 4), 5, dtype=np.int64)
    first.run(ids, np.ones_like(ids))
    base = resident()
    model, fused = ((folder / name).read_bytes() for name in ("model.onnx", FUSED_NAME))
    runtime = providers.load(provider, Graph(model, INPUTS, OUTPUTS[0], fused))
    draw = random.Random(3)
    for number in range(SHAPES):
        tokens = draw.randint(2, 60)
        ids = np.full((draw.randint(1, TOKENS // tokens), tokens), 5, dtype=np.int64)
        runtime.run(ids, np.ones_like(ids), alone=number % 8 == 0)
    del model, fused
    return resident() - base


if __name__ == "__main__":
    sys.stdout.write(f"{main(cast(Provider, sys.argv[1]), Path(sys.argv[2]))}\n")
