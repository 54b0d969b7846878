"""Loading: verified byte by byte, least recently used out, failures kept to the version that failed."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from prometheus_client import CollectorRegistry

from app.contracts.manifest import MANIFEST_NAME, Manifest
from app.contracts.providers import Provider
from app.contracts.tasks import TaskName
from app.core.metrics import InferenceMetrics
from model_store.verify import ArtifactCorrupt, verify_folder
from tests import toy_artifact
from workers.inference import providers
from workers.inference.graph import Graph
from workers.inference.providers import choice
from workers.inference.providers.device import OnDevice, round_up
from workers.inference.runtime import ON_CPU, Float32, Int64, Runtime, RuntimeRefused
from workers.inference.sessions import ModelLoadFailed, Sessions, load

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


def sessions(root: Path, room_for: int = 2) -> tuple[Sessions, list[str]]:
    """Versions `v0`, `v1`, ... built on demand; `bad...` cannot be located. Returns what was asked of locate."""
    asked: list[str] = []

    def locate(version_id: str) -> tuple[Path, str]:
        asked.append(version_id)
        if version_id.startswith("bad"):
            raise LookupError("no row")
        return root / version_id, toy_artifact.build(root / version_id)

    metrics = InferenceMetrics(CollectorRegistry())
    each = load("size", root / "size", toy_artifact.build(root / "size"), "onnxruntime-cpu", root / "p.json").bytes
    made = Sessions(
        locate, budget=room_for * each, provider="onnxruntime-cpu", remembered=root / "p.json", metrics=metrics
    )
    return made, asked


def test_least_recently_used_leaves_first(tmp_path: Path) -> None:
    cache, asked = sessions(tmp_path)
    for version_id in ("v0", "v1", "v0", "v2", "v0", "v1"):
        assert cache.get(version_id).version_id == version_id
    assert asked == ["v0", "v1", "v2", "v1"]
    assert cache.loaded("v2") is None


def test_pinned_versions_leave_last(tmp_path: Path) -> None:
    cache, _ = sessions(tmp_path)
    assert cache.pin(frozenset({"v0"})) == ["v0"]
    for version_id in ("v0", "v1", "v2"):
        cache.get(version_id)
    assert cache.loaded("v0") is not None and cache.loaded("v1") is None
    assert cache.unload("v0") and not cache.unload("v0")
    assert cache.bytes() <= 2 * cache.get("v2").bytes


def test_the_newest_stays_though_it_alone_is_too_large(tmp_path: Path) -> None:
    cache, _ = sessions(tmp_path, room_for=0)
    for version_id in ("v0", "v1"):
        assert cache.get(version_id) is cache.loaded(version_id)
    assert cache.loaded("v0") is None


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
            Graph(helper.make_model(graph).SerializeToString(), INPUTS, "logits")


def toy_graph(folder: Path) -> Graph:
    toy_artifact.build(folder)
    return Graph((folder / "model.onnx").read_bytes(), INPUTS, "logits")


def test_foreign_bytes_and_foreign_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeRefused, match="not an ONNX model"):
        Graph(b"\xffnot a graph", INPUTS, "logits")
    data = toy_graph(tmp_path).model
    with pytest.raises(RuntimeRefused, match="known are input_ids"):
        Graph(data, ["pixels"], "logits")
    broken = onnx.load_model_from_string(data)
    broken.graph.node[0].op_type = "NoSuchOperator"
    for provider in providers.available():
        with pytest.raises(RuntimeRefused, match=r"the graph takes .* the manifest says"):
            providers.load(provider, Graph(data, ["input_ids"], "logits"))
        with pytest.raises(RuntimeRefused, match="refuses the graph"):
            providers.load(provider, Graph(broken.SerializeToString(), INPUTS, "logits"))


def test_a_provider_that_is_not_there_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    missing = [name for name in providers.PROVIDERS if name not in providers.available()]
    for name in missing:
        with pytest.raises(RuntimeRefused, match=f"MODELWRIGHT_PROVIDER={name} cannot run here.*onnxruntime-cpu"):
            providers.load(name, toy_graph(tmp_path))
    assert providers.REFERENCE not in missing


def test_every_provider_here_computes_the_same_from_many_threads(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    for name in providers.available():
        runtime = providers.load(name, graph)
        assert runtime.run(np.array([[4]]), np.array([[1]])).tolist() == [[10.0, 0.0, 0.0]]

        def run(rows: int, runtime: Runtime = runtime) -> float:
            ids = np.full((rows, 5), 4, dtype=np.int64)  # w0: 10 for label a
            found = runtime.run(ids, np.ones_like(ids), alone=rows % 5 == 0)
            assert found.shape == (rows, 3)
            return float(found[:, 0].mean())

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(run, range(1, 33))) == [10.0] * 32


def test_a_loaded_engine_does_not_keep_the_file(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    before = sys.getrefcount(graph.model)
    kept = [providers.load(name, graph) for name in providers.available()]
    after = sys.getrefcount(graph.model)  # in the assertion pytest would hold it, too
    assert kept and after == before


def test_an_engine_need_not_decide_what_the_reference_cannot() -> None:
    """Two labels as good as each other say nothing about an engine; a clear decision that it misses does."""
    probes = [(np.ones((4, 3), dtype=np.int64), np.ones((4, 3), dtype=np.int64))]

    class Engine:
        batching = ON_CPU

        def __init__(self, *logits: float) -> None:
            self.logits = np.array([logits] * 4, dtype=np.float32)

        def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
            return self.logits

    def alike(reference: Engine, engine: Engine) -> bool:
        return choice._measure(engine, probes, [reference.logits], vectors=False).alike

    assert alike(Engine(1.0, 0.999, -4.0), Engine(0.999, 1.0, -4.0))
    assert not alike(Engine(1.0, 0.9, -4.0), Engine(0.9, 1.0, -4.0))


def test_a_device_gets_few_shapes_and_answers_as_the_bare_graph_does(tmp_path: Path) -> None:
    """On the CPU: no device is here. A graph that answers each token, so that rows and tokens must be cut back."""
    seen: set[tuple[int, ...]] = set()
    for rows in (1, 3, 8):
        for tokens in (1, 16, 17):
            ids = np.full((rows, tokens), 4, dtype=np.int64)
            padded, mask = round_up(ids, np.ones_like(ids))
            seen.add(padded.shape)
            assert padded[:rows, :tokens].tolist() == ids.tolist()
            assert mask[:rows].sum() == rows * tokens
            assert mask[rows:].sum(axis=1).tolist() == [1] * (len(mask) - rows)
    assert seen == {(rows, tokens) for rows in (1, 4, 8) for tokens in (16, 32)}
    shapes: dict[TaskName, tuple[int, ...]] = {"text-classification": (3, 3), "token-classification": (3, 5, 3)}
    for name, shape in shapes.items():
        folder = tmp_path / name
        toy_artifact.build(folder, task=name)
        graph = Graph((folder / "model.onnx").read_bytes(), INPUTS, "logits")
        ids = np.array([[4, 5, 6, 0, 0], [5, 0, 0, 0, 0], [6, 4, 4, 4, 4]])
        mask = (ids > 0).astype(np.int64)
        found = OnDevice(graph, ["CPUExecutionProvider"]).run(ids, mask)
        assert found.shape == shape
        assert found.tolist() == providers.load("onnxruntime-cpu", graph).run(ids, mask).tolist()


def test_auto_takes_what_is_fastest_and_answers_alike_and_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With made-up engines: one is fast and wrong, one fast and right, one fails."""
    graph, remembered = toy_graph(tmp_path), tmp_path / "home" / "providers.json"
    loaded: list[str] = []

    class Engine:
        batching = ON_CPU

        def __init__(self, seconds: float, label: int) -> None:
            self.seconds, self.label = seconds, label

        def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
            time.sleep(self.seconds)
            logits: Float32 = np.eye(3, dtype=np.float32)[np.full(len(ids), self.label)]
            return logits

    engines = {"cuda": Engine(0.0, 1), "openvino-bf16": Engine(0.001, 0), "onnxruntime-cpu": Engine(0.01, 0)}

    def load(name: Provider, _graph: Graph) -> Runtime:
        loaded.append(name)
        if name == "tensorrt":
            raise RuntimeRefused("no device")
        return engines[name]

    monkeypatch.setattr(choice, "load", load)
    monkeypatch.setattr(choice, "available", lambda: ["tensorrt", *engines])
    assert choice.choose(graph, vocabulary=10, remembered=remembered)[0] == "openvino-bf16"
    assert sorted(loaded) == ["cuda", "onnxruntime-cpu", "openvino-bf16", "tensorrt"]
    loaded.clear()
    assert choice.choose(graph, vocabulary=10, remembered=remembered)[0] == "openvino-bf16"
    assert loaded == ["openvino-bf16"]


def test_telemetry_is_never_loaded(tmp_path: Path) -> None:
    """OpenVINO brings a package that may report its use; its tools load it, its runtime does not."""
    for name in providers.available():
        providers.load(name, toy_graph(tmp_path))
    assert sys.modules.get("openvino_telemetry") is None
