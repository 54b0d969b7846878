"""Toy artifacts that weigh something: hand-computable answers (`tests/toy_artifact.py`), real megabytes and real work.

A chain of matrix products runs over every token and enters the answer times zero, which no optimizer may drop.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from app.contracts.manifest import MANIFEST_NAME, Manifest
from tests import toy_artifact

WIDTH = 512
"""One layer is a megabyte, and 0.5 million multiplications a token."""


def build(folder: Path, labels: Sequence[str], *, layers: int, seed: int = 0) -> None:
    """The artifact of a text classifier; `layers` is about its size in MiB, `seed` makes its bytes its own."""
    toy_artifact.build(folder, labels=labels)
    if not layers:
        return
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    draw, count = np.random.default_rng(seed), len(labels)
    shapes = [(count, WIDTH), *[(WIDTH, WIDTH)] * layers, (WIDTH, count)]
    (last,) = (node for node in model.graph.node if node.output[0] == "logits")
    last.output[0], at = "plain", "embedded"
    for number, shape in enumerate(shapes):
        weights = draw.standard_normal(shape, dtype=np.float32) / np.float32(shape[0] ** 0.5)
        model.graph.initializer.append(numpy_helper.from_array(weights, f"weights{number}"))
        model.graph.node.append(helper.make_node("MatMul", [at, f"weights{number}"], [at := f"layer{number}"]))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", [at, "one"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["no_weight"]),
            helper.make_node("Add", ["plain", "no_weight"], ["logits"]),
        ]
    )
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    toy_artifact.seal(folder, manifest.serving)
