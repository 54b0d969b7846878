"""An untrained encoder's artifact: its vectors are the mean of torch's token vectors, of length 1, cut where stated."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModel

from app.contracts.manifest import Manifest
from app.contracts.training import Finished, Phase, TrainingSpec
from tests.conformance.conftest import read_messages
from workers.codecs.text import pad
from workers.inference.sessions import load
from workers.training import encoders
from workers.training.errors import TrainingFailed
from workers.training.job import run
from workers.training.models import load_encoder, open_base
from workers.training.reporter import Reporter

TEXTS = ["the dog", "a very red hammer is here now and it was some drill", "bird"]


def spec_of(base: Path, output: Path) -> TrainingSpec:
    return TrainingSpec(
        job_id="exjob-toy",
        task="sentence-embedding",
        base_model="toy",
        base_model_path=str(base),
        base_model_revision="0",
        datasets={},
        seed=0,
        output=str(output),
        export_only=True,
    )


@pytest.fixture(scope="module")
def exported(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    output = tmp_path_factory.mktemp("encoder")
    stream = io.StringIO()
    run(spec_of(toy_base, output), Reporter(stream))
    *_, exporting, finished = read_messages(stream)
    assert isinstance(exporting, Phase) and isinstance(finished, Finished)
    return output / "artifact", finished


def torch_vectors(base: Path, rows: list[list[int]]) -> np.ndarray:
    """One row at a time, so without any padding or mask."""
    encoder = AutoModel.from_pretrained(base, add_pooling_layer=False).eval()
    with torch.no_grad():
        means = [encoder(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows]
    return np.stack([(mean / mean.norm()).numpy() for mean in means])


def test_served_vectors_are_those_of_torch(exported: tuple[Path, Finished], toy_base: Path, tmp_path: Path) -> None:
    folder, _ = exported
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    version = load("v", folder, manifest.digest, "onnxruntime-cpu", tmp_path / "providers.json")
    prepared = version.prepare(version.codec, version.serving, TEXTS, {})
    expected = torch_vectors(toy_base, prepared.rows)
    for together in ([0, 1, 2], [1], [2, 0]):  # whatever pads a row, its vector is the same
        got = version.runtime.run(*pad([prepared.rows[i] for i in together], 0))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected[together], atol=1e-5)
    packed = prepared.finish(list(expected))
    np.testing.assert_array_equal(np.stack([np.frombuffer(p, "<f4") for p in packed]), expected)


def test_the_artifact_says_what_it_is(exported: tuple[Path, Finished]) -> None:
    folder, finished = exported
    serving = Manifest.model_validate_json((folder / "manifest.json").read_bytes()).serving
    assert (serving.task, serving.labels, serving.outputs) == ("sentence-embedding", [], encoders.OUTPUTS)
    assert serving.max_length == 64
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        (encoders.OUTPUTS[0], "tensor(float)", ["batch", 32])
    ]
    assert finished.parity["max_abs_diff"] <= finished.parity["tolerance"] == 1e-4
    assert finished.parity["rows"] == 8


def test_a_graph_that_differs_is_refused(exported: tuple[Path, Finished], toy_base: Path) -> None:
    folder, _ = exported
    model = encoders.SentenceEncoder(load_encoder(open_base(toy_base))).eval()
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.1)
    with pytest.raises(TrainingFailed) as caught:
        encoders.check_parity(model, folder / "model.onnx", vocabulary=60, max_length=64)
    assert caught.value.code == "parity_failed"


def test_text_is_cut_where_sentence_transformers_cuts_it(toy_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(toy_base, tmp_path / "base"))
    (base / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    run(spec_of(base, tmp_path / "out"), Reporter(io.StringIO()))
    manifest = Manifest.model_validate_json((tmp_path / "out" / "artifact" / "manifest.json").read_bytes())
    assert manifest.serving.max_length == 12


def pools_otherwise(base: Path) -> None:
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )


def has_another_layer(base: Path) -> None:
    steps = ["Transformer", "Pooling", "Dense", "Normalize"]
    (base / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{s}"} for s in steps]))


def is_no_encoder(base: Path) -> None:
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 10, "n_embd": 8, "n_head": 1}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pools_otherwise, "wants pooling_mode_cls_token, and only the mean"),
        (has_another_layer, "models.Dense' after its encoder"),
        (is_no_encoder, "is a gpt2 model, which is no encoder"),
    ],
)
def test_a_model_of_another_rule_is_refused(
    change: Callable[[Path], None], words: str, toy_base: Path, tmp_path: Path
) -> None:
    """Rather than answered with vectors that nobody trained it for."""
    base = Path(shutil.copytree(toy_base, tmp_path / "base"))
    change(base)
    with pytest.raises(TrainingFailed) as caught:
        run(spec_of(base, tmp_path / "out"), Reporter(io.StringIO()))
    assert caught.value.code == "base_model" and words in caught.value.message
    assert not (tmp_path / "out").exists()
