"""A fused graph answers as the standard one does, for every kind of encoder, or is not there."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir
from transformers import AutoConfig, AutoModel

from app.contracts.manifest import FUSED_NAME, FUSED_OF
from tests import toy_artifact
from workers.inference import providers
from workers.inference.graph import Graph
from workers.training import fusion
from workers.training.encoders import SentenceEncoder
from workers.training.export import INPUTS, OUTPUTS, export_onnx

VOCABULARY = 60
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}
KINDS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "electra": SIZES | {"embedding_size": 32},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 80},
    "mpnet": SIZES,
    "albert": SIZES | {"embedding_size": 16},
}
FUSED = {"bert", "roberta", "xlm-roberta", "electra", "distilbert"}
"""Those in which the library finds every attention today."""


def encoder(kind: str) -> SentenceEncoder:
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **KINDS[kind])
    return SentenceEncoder(AutoModel.from_config(config))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_graph_answers_as_the_standard_one(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = encoder(kind)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, pad_token_id=1, outputs=OUTPUTS)
    if not (tmp_path / FUSED_NAME).exists():
        assert kind not in FUSED
        return
    standard, fused = path.read_bytes(), (tmp_path / FUSED_NAME).read_bytes()
    whole = Graph(standard, INPUTS, OUTPUTS[0], fused)
    operators = [node.op_type for node in onnx.load_model_from_string(whole.model).graph.node]
    assert operators.count("Attention") == (2 if kind in FUSED else operators.count("Attention"))
    assert len(fused) < len(standard) / 2 or len(standard) < 1e6, "the weights are stored once"
    packed = whole.packed()
    assert (packed is whole) == ("Attention" not in operators)
    left = [node.op_type for node in onnx.load_model_from_string(packed.model).graph.node]
    assert kind not in FUSED or (left.count("Attention"), left.count("MultiHeadAttention")) == (0, 2)
    draw = np.random.default_rng(1)
    for name in providers.available():
        runtimes = [providers.load(name, graph) for graph in (Graph(standard, INPUTS, OUTPUTS[0]), whole)]
        for rows, tokens in ((1, 1), (4, 11), (2, 40)):
            ids = draw.integers(2, VOCABULARY, (rows, tokens), dtype=np.int64)
            mask = (np.arange(tokens) < draw.integers(1, tokens + 1, (rows, 1))).astype(np.int64)
            ids[mask == 0] = 1
            expected, found = (runtime.run(ids, mask) for runtime in runtimes)
            np.testing.assert_allclose(found, expected, atol=2e-5 if name == providers.REFERENCE else 2e-2)


def test_nothing_is_written_where_nothing_is_fused(tmp_path: Path) -> None:
    toy_artifact.build(tmp_path)
    assert not fusion.write_fused(tmp_path / "model.onnx", vocabulary=toy_artifact.WORDS)
    assert not (tmp_path / FUSED_NAME).exists()


def test_a_fused_graph_that_differs_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder("bert")
    export_onnx(model, tmp_path / "model.onnx", pad_token_id=1)
    (tmp_path / FUSED_NAME).unlink()
    fuse = fusion._fuse

    def wrong(graph: ir.Model) -> ir.Model:
        proto = ir.to_proto(fuse(graph))
        weight = next(w for w in proto.graph.initializer if w.name.endswith("LayerNorm.weight"))
        weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.5).tobytes()
        return ir.from_proto(proto)

    monkeypatch.setattr(fusion, "_fuse", wrong)
    assert not fusion.write_fused(tmp_path / "model.onnx", vocabulary=VOCABULARY)
    monkeypatch.setattr(fusion, "_fuse", lambda _: 1 / 0)
    assert not fusion.write_fused(tmp_path / "model.onnx", vocabulary=VOCABULARY)
    assert not (tmp_path / FUSED_NAME).exists()


def test_the_fused_form_of_another_graph_is_overlooked(tmp_path: Path) -> None:
    """As when a quantized graph takes the place of the one that was fused, and the other files are copied."""
    toy_artifact.build(tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    other = onnx.load_model_from_string(data)
    onnx.helper.set_model_props(other, {FUSED_OF: hashlib.sha256(b"another").hexdigest()})
    assert Graph(data, INPUTS, "logits", other.SerializeToString()).model == data
    onnx.helper.set_model_props(other, {FUSED_OF: hashlib.sha256(data).hexdigest()})
    assert Graph(data, INPUTS, "logits", other.SerializeToString()).model == other.SerializeToString()
