"""Loading: verified byte by byte, least recently used out, failures kept to the version that failed."""

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from prometheus_client import CollectorRegistry

from app.contracts.manifest import MANIFEST_NAME, Manifest
from app.core.metrics import InferenceMetrics
from model_store.verify import ArtifactCorrupt, verify_folder
from tests import toy_artifact
from workers.inference.runtime import OnnxRuntime, RuntimeRefused, refuse_external_data
from workers.inference.sessions import ModelLoadFailed, Sessions

INPUTS = ["input_ids", "attention_mask"]


def test_verified_artifact_is_its_manifest(tmp_path: Path) -> None:
    digest = toy_artifact.build(tmp_path)
    assert verify_folder(tmp_path, digest).digest == digest


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_one_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    digest = toy_artifact.build(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactCorrupt, match=f"^{name} .* hashes to .* the manifest says"):
        verify_folder(tmp_path, digest)


def test_missing_file_and_missing_manifest_are_refused(tmp_path: Path) -> None:
    digest = toy_artifact.build(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ArtifactCorrupt, match=r"tokenizer\.json cannot be read: No such file"):
        verify_folder(tmp_path, digest)
    (tmp_path / MANIFEST_NAME).unlink()
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json cannot be read"):
        verify_folder(tmp_path, digest)
    (tmp_path / MANIFEST_NAME).write_text('{"format": 1}')
    with pytest.raises(ArtifactCorrupt, match="is not a manifest"):
        verify_folder(tmp_path, digest)


def test_resealed_or_edited_manifest_is_refused(tmp_path: Path) -> None:
    digest = toy_artifact.build(tmp_path)
    other = toy_artifact.build(tmp_path, labels=("x", "y"))
    with pytest.raises(ArtifactCorrupt, match=f"says {other} where {digest} was sealed"):
        verify_folder(tmp_path, digest)
    body = json.loads((tmp_path / MANIFEST_NAME).read_text())
    body["serving"]["labels"] = ["y", "x"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(body))
    with pytest.raises(ArtifactCorrupt, match="hashes to"):
        verify_folder(tmp_path, other)


def test_a_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    toy_artifact.build(folder)
    manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    manifest.files["../secret"] = manifest.files["model.onnx"]
    sealed = manifest.sealed()
    (folder / MANIFEST_NAME).write_text(sealed.model_dump_json())
    (tmp_path / "secret").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(ArtifactCorrupt, match="leads out of"):
        verify_folder(folder, sealed.digest)


def sessions(root: Path, limit: int = 2) -> tuple[Sessions, list[str]]:
    """Versions `v0`, `v1`, ... built on demand; `bad...` cannot be located. Returns what was asked of locate."""
    asked: list[str] = []

    def locate(version_id: str) -> tuple[Path, str]:
        asked.append(version_id)
        if version_id.startswith("bad"):
            raise LookupError("no row")
        return root / version_id, toy_artifact.build(root / version_id)

    metrics = InferenceMetrics(CollectorRegistry())
    return Sessions(locate, limit=limit, provider="onnxruntime-cpu", metrics=metrics), asked


def test_least_recently_used_leaves_first(tmp_path: Path) -> None:
    cache, asked = sessions(tmp_path)
    for version_id in ("v0", "v1", "v0", "v2", "v0", "v1"):
        assert cache.get(version_id).version_id == version_id
    assert asked == ["v0", "v1", "v2", "v1"]
    assert cache.loaded("v2") is None


def test_a_failure_is_remembered_and_is_no_other_versions_business(tmp_path: Path) -> None:
    cache, asked = sessions(tmp_path)
    for _ in range(3):
        with pytest.raises(ModelLoadFailed, match="version bad1 cannot be loaded: no row"):
            cache.get("bad1")
    assert cache.get("v0").version_id == "v0"
    assert asked == ["bad1", "v0"]


def test_external_data_is_refused_even_in_a_subgraph(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(4, dtype=np.float32), "outside")
    external_data_helper.set_external_data(tensor, "outside.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    inner = helper.make_graph([], "inner", [], [], [tensor])
    for graph in (
        helper.make_graph([], "outer", [], [], [tensor]),
        helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], "g", [], []),
    ):
        with pytest.raises(RuntimeRefused, match="'outside' keeps its data in another file"):
            refuse_external_data(helper.make_model(graph).SerializeToString())


def test_foreign_bytes_and_foreign_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeRefused, match="not an ONNX model"):
        OnnxRuntime(b"\xffnot a graph", inputs=INPUTS, output="logits", provider="onnxruntime-cpu")
    toy_artifact.build(tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    with pytest.raises(RuntimeRefused, match=r"the graph takes .* the manifest says"):
        OnnxRuntime(data, inputs=["input_ids"], output="logits", provider="onnxruntime-cpu")
    broken = onnx.load_model_from_string(data)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(RuntimeRefused, match="refuses the graph"):
        OnnxRuntime(broken.SerializeToString(), inputs=INPUTS, output="logits", provider="onnxruntime-cpu")


def test_cuda_that_is_not_there_is_an_error_and_auto_runs_on_the_cpu(tmp_path: Path) -> None:
    toy_artifact.build(tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(RuntimeRefused, match="fell back to CPUExecutionProvider: install onnxruntime-gpu"):
            OnnxRuntime(data, inputs=INPUTS, output="logits", provider="cuda")
    runtime = OnnxRuntime(data, inputs=INPUTS, output="logits", provider="auto")
    assert runtime.run(np.array([[4]]), np.array([[1]])).tolist() == [[10.0, 0.0, 0.0]]


def test_one_session_serves_many_threads(tmp_path: Path) -> None:
    toy_artifact.build(tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    runtime = OnnxRuntime(data, inputs=INPUTS, output="logits", provider="onnxruntime-cpu")
    results: list[float] = []

    def run() -> None:
        ids = np.full((3, 5), 4, dtype=np.int64)  # w0: 10 for label a
        results.append(float(runtime.run(ids, np.ones_like(ids))[:, 0].mean()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [10.0] * 4
