"""`/v2` with the stock `tritonclient`, sync and aio: a gateway on a port, a worker over toy artifacts."""

import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import uvicorn
from fastapi.testclient import TestClient
from httpx2 import Client, Response
from sqlalchemy import update
from tritonclient.utils import InferenceServerException

from app.api.middleware import PUBLIC
from app.contracts.manifest import MANIFEST_NAME, Manifest
from app.core.ids import new_id
from app.core.process import free_port
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database
from app.registry.tables import VersionRow
from tests import toy_artifact
from tests.integration.test_models_api import publish
from workers.inference.consumer import Consumer

LABELS = ["a", "b", "c"]


class Bearer:
    """A plugin of the stock client, its own place for a key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = f"Bearer {self._key}"


class Toys:
    """Published toy versions and the worker that serves them."""

    def __init__(self, database: Database, root: Path) -> None:
        self._database, self._root = database, root
        self.folders: dict[str, tuple[Path, str]] = {}

    def publish(self, name: str, **options: Any) -> VersionRow:
        row = publish(self._database, name)
        folder = self._root / row.id
        digest = toy_artifact.build(folder, **options)
        serving = Manifest.model_validate_json((folder / MANIFEST_NAME).read_text()).serving
        with self._database.unit_of_work() as session:
            values = {"serving": serving.model_dump(), "task": serving.task}
            session.execute(update(VersionRow).where(VersionRow.id == row.id).values(**values))
        self.folders[row.id] = (folder, digest)
        return row


@pytest.fixture(scope="module")
def toys(database: Database, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    found = Toys(database, tmp_path_factory.mktemp("toys"))
    assert settings.redis_url
    consumer = Consumer(settings.redis_url, settings, found.folders.__getitem__)
    consumer.start()
    yield found
    consumer.stop()


@pytest.fixture(scope="module")
def classifier(toys: Toys) -> str:
    name = f"toy-{new_id('')[:8]}"
    toys.publish(name)
    toys.publish(name)
    return name


@pytest.fixture(scope="module")
def tagger(toys: Toys) -> str:
    return toys.publish(f"tag-{new_id('')[:8]}", task="token-classification", labels=toy_artifact.IOB2).model.name


@pytest.fixture(scope="module")
def address(settings: Settings) -> Iterator[str]:
    """A gateway as uvicorn runs it: the stock client needs a socket."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=free_port(), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(address: str, admin_key: str) -> Iterator[Any]:
    found = triton.InferenceServerClient(address, concurrency=8)
    found.register_plugin(Bearer(admin_key))
    yield found
    found.close()


@pytest.fixture
def http(address: str, admin_key: str) -> Iterator[Client]:
    with Client(base_url=f"http://{address}", headers={"authorization": f"Bearer {admin_key}"}) as found:
        yield found


def texts(*given: str, binary: bool = True, module: Any = triton) -> list[Any]:
    tensor = module.InferInput("text", [len(given)], "BYTES")
    tensor.set_data_from_numpy(np.array(given, dtype=np.object_), binary_data=binary)
    return [tensor]


def ids(rows: list[list[int]], width: int) -> list[Any]:
    padded = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=np.int64)
    found = []
    for name, values in (("input_ids", padded), ("attention_mask", mask)):
        found.append(triton.InferInput(name, list(values.shape), "INT64"))
        found[-1].set_data_from_numpy(values)
    return found


def output(result: Any, name: str) -> list[Any]:
    values: list[Any] = result.as_numpy(name).tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def said(answer: Response, status: int) -> str:
    """The message of the protocol's error body."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert answer.headers["x-request-id"]
    found: str = answer.json()["error"]
    return found


def infer_body(*given: str, **members: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [len(given)], "datatype": "BYTES", "data": list(given)}
    return {"inputs": [tensor], **members}


def test_server_calls(client: Any, address: str, classifier: str) -> None:
    anonymous = triton.InferenceServerClient(address)
    assert anonymous.is_server_live()
    # No trainer runs here, and none is needed for predictions.
    assert anonymous.is_server_ready()
    with pytest.raises(InferenceServerException, match=r"\[401\].*Authorization: Bearer"):
        anonymous.get_server_metadata()
    anonymous.close()
    found = client.get_server_metadata()
    assert found["name"] == "modelwright"
    assert {"binary_tensor_data", "classification", "statistics", "model_repository"} <= set(found["extensions"])
    assert not {"trace", "logging", "system_shared_memory", "cuda_shared_memory"} & set(found["extensions"])
    assert {"/v2/health/live", "/v2/health/ready"} <= PUBLIC
    assert client.is_model_ready(classifier)
    assert client.is_model_ready(classifier, "1")
    assert client.is_model_ready(f"{classifier}:1")
    assert not client.is_model_ready(classifier, "9")
    assert not client.is_model_ready("nobody")


def test_metadata_and_config(client: Any, classifier: str, tagger: str) -> None:
    found = client.get_model_metadata(classifier)
    assert (found["name"], found["versions"]) == (classifier, ["1", "2"])
    assert found["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {o["name"]: (o["datatype"], o["shape"]) for o in found["outputs"]} == {
        "label": ("BYTES", [-1]),
        "score": ("FP32", [-1]),
        "logits": ("FP32", [-1, 3]),
    }
    assert client.get_model_metadata(classifier, "1")["versions"] == ["1"]
    config = client.get_model_config(classifier)
    assert config["max_batch_size"] == 1024
    assert {o["name"]: (o["data_type"], o["dims"]) for o in config["output"]}["logits"] == ("TYPE_FP32", [3])
    assert client.get_model_config(classifier, "2")["name"] == f"{classifier}:2"
    assert [o["name"] for o in client.get_model_metadata(tagger)["outputs"]] == ["entities", "logits"]
    for call in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match=r"\[404\].*no model"):
            call("nobody")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_infer_with_every_encoding(client: Any, classifier: str, binary: bool, packed: str | None) -> None:
    result = client.infer(
        classifier,
        texts("w1 w1", "w2", "wörter", binary=binary),
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
        request_id="mine",
    )
    assert output(result, "label")[:2] == ["b", "c"]
    assert output(result, "score")[2] == pytest.approx(1 / 3)
    head = result.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("mine", classifier, "2")
    # What names no outputs gets all but the logits, as binary data: so the client asks.
    assert [o["name"] for o in head["outputs"]] == ["label", "score"]
    assert all("binary_data_size" in o["parameters"] for o in head["outputs"])


def test_outputs_as_they_are_asked_for(client: Any, classifier: str) -> None:
    wanted = [
        triton.InferRequestedOutput("logits", binary_data=True),
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("score", binary_data=False, class_count=2),
    ]
    result = client.infer(
        classifier,
        texts("w1 w1", "w2 w2", binary=False),
        model_version="1",
        outputs=wanted,
        sequence_id=7,
        sequence_start=True,
        priority=1,
        timeout=5_000_000,
        parameters={"custom": "ignored"},
    )
    # [CLS] w1 w1 [SEP]: mean of 0, 10, 10, 0 is 5.
    assert output(result, "logits") == [[0, 5, 0], [0, 0, 5]]
    assert [o["name"] for o in result.get_response()["outputs"]] == ["logits", "label", "score"]
    assert result.get_output("label")["data"] == ["b", "c"]
    assert result.get_response()["model_version"] == "1"
    ranked = result.as_numpy("score")
    assert ranked.shape == (2, 2)
    value, *best = ranked[0][0].split(":")
    assert float(value) == pytest.approx(np.exp(5) / (np.exp(5) + 2), abs=1e-5)
    assert best == ["1", "b"]
    wanted = [triton.InferRequestedOutput("logits", class_count=9)]
    ranked = client.infer(classifier, texts("w2 w2"), outputs=wanted).as_numpy("logits")
    assert [entry.decode() for entry in ranked[0]] == ["5.000000:2:c", "0.000000:0:a", "0.000000:1:b"]


def test_the_flag_of_an_output_goes_before_that_of_the_request(http: Client, classifier: str) -> None:
    asked = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "score"}]
    body = infer_body("w1", "w2", outputs=asked, parameters={"binary_data_output": True})
    answer = http.post(f"/v2/models/{classifier}/infer", json=body)
    size = int(answer.headers["inference-header-content-length"])
    label, score = json.loads(answer.content[:size])["outputs"]
    assert label["data"] == ["b", "c"]
    assert score["parameters"] == {"binary_data_size": 8}
    assert struct.unpack("<2f", answer.content[size:]) == pytest.approx([0.93, 0.93], abs=0.01)
    plain = http.post(f"/v2/models/{classifier}/infer", json=infer_body("w1"), headers={"accept-encoding": "gzip;q=0"})
    assert "inference-header-content-length" not in plain.headers
    assert "content-encoding" not in plain.headers
    assert "id" not in plain.json()
    packed = http.post(f"/v2/models/{classifier}/infer", json=infer_body("w1"), headers={"accept-encoding": "br, gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()


def test_a_raw_body_is_one_text(http: Client, classifier: str) -> None:
    answer = http.post(
        f"/v2/models/{classifier}:1/infer", content=b"w1 w1", headers={"inference-header-content-length": "0"}
    )
    assert answer.json()["outputs"][0] == {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["b"]}


def test_token_ids_in_place_of_text(client: Any, http: Client, classifier: str, tagger: str) -> None:
    rows = [[2, 5, 5, 3], [2, 6, 3]]  # [CLS] w1 w1 [SEP] and [CLS] w2 [SEP]
    by_ids = client.infer(classifier, ids(rows, 6), outputs=[triton.InferRequestedOutput("logits")])
    by_text = client.infer(classifier, texts("w1 w1", "w2"), outputs=[triton.InferRequestedOutput("logits")])
    assert np.array_equal(by_ids.as_numpy("logits"), by_text.as_numpy("logits"))
    tags = client.infer(tagger, ids(rows, 6)).as_numpy("logits")
    assert tags.shape == (2, 6, 4)
    assert tags[0].argmax(-1).tolist() == [0, 1, 1, 0, 0, 0]
    assert tags[0, 1, 1] == 10
    assert not tags[1, 3:].any()
    with pytest.raises(InferenceServerException, match="there is no token 99"):
        client.infer(classifier, ids([[2, 99, 3]], 3))
    with pytest.raises(InferenceServerException, match=r"20 token ids were given; this model takes 1 to 16"):
        client.infer(classifier, ids([[5] * 20], 20))
    refused = http.post("/predict", json={"model": classifier, "inputs": [{"input_ids": [2, 5, 3]}]})
    assert refused.status_code == 400
    refused = http.post("/predict", json={"model": classifier, "inputs": ["w1"], "parameters": {"logits": True}})
    assert refused.json()["error"]["code"] == "unknown_field"


def test_tagger_and_several_labels(client: Any, toys: Toys, tagger: str) -> None:
    found = output(client.infer(tagger, texts("w0 w1 w2", "w0")), "entities")
    assert [(e["label"], e["text"]) for e in json.loads(found[0])] == [("LOC", "w1 w2")]
    assert json.loads(found[1]) == []
    several = toys.publish(f"multi-{new_id('')[:8]}", multi_label=True).model.name
    result = client.infer(several, texts("w0 w1 w1"))
    assert output(result, "label") == ["b"]
    assert output(result, "score") == [pytest.approx(1 / (1 + np.exp(-4)))]
    assert [entry["label"] for entry in json.loads(output(result, "labels")[0])] == ["b", "a", "c"]


def test_sentence_vectors(client: Any, toys: Toys) -> None:
    name = toys.publish(f"encoder-{new_id('')[:8]}", task="sentence-embedding").model.name
    assert client.get_model_metadata(name)["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, -1]}]
    found = client.infer(name, texts("w1 w1", "w2")).as_numpy("embedding")
    assert found.shape[0] == 2
    assert found[0, 1] > 0.9 > found[1, 1]
    assert np.array_equal(client.infer(name, ids([[2, 5, 5, 3], [2, 6, 3]], 4)).as_numpy("embedding"), found)


def test_async_infer_and_batches_in_the_statistics(client: Any, http: Client, toys: Toys) -> None:
    name = toys.publish(f"stats-{new_id('')[:8]}").model.name
    calls = [client.async_infer(name, texts(*[f"w{k % 32}"] * 8), request_id=str(k)) for k in range(40)]
    for k, call in enumerate(calls):
        result = call.get_result()
        assert result.get_response()["id"] == str(k)
        assert output(result, "label") == [LABELS[k % 32 % 3]] * 8
    # `/predict` is counted too.
    assert http.post("/predict", json={"model": name, "inputs": ["w1"] * 5}).status_code == 200
    with pytest.raises(InferenceServerException):
        client.infer(name, texts(*["w1"] * 512), timeout=1)  # more than a millisecond of work
    (one,) = client.get_inference_statistics(name)["model_stats"]
    assert (one["name"], one["version"]) == (name, "1")
    assert one["inference_count"] == 40 * 8 + 5
    assert 1 <= one["execution_count"] <= 41
    assert one["inference_stats"]["success"]["count"] == 41
    assert one["inference_stats"]["success"]["ns"] > 0
    assert one["inference_stats"]["fail"]["count"] == 1
    assert time.time() * 1000 - one["last_inference"] < 60_000
    assert client.get_inference_statistics(name, "1")["model_stats"] == [one]
    assert one in client.get_inference_statistics()["model_stats"]


def test_names_with_colons_at_signs_and_slashes(client: Any, http: Client, toys: Toys, classifier: str) -> None:
    row = toys.publish(f"named-{new_id('')[:8]}")
    name = row.model.name
    http.put(f"/v1/models/{name}/aliases/staging", json={"version": 1})
    for reference in (f"{name}@staging", f"{name}:1", row.ft_id):
        assert output(client.infer(reference, texts("w1")), "label") == ["b"]
        assert client.get_model_metadata(reference)["name"] == reference
        assert client.is_model_ready(reference)
    assert client.is_model_ready(f"{name}:1", "1")
    with pytest.raises(InferenceServerException, match=r"leave out /versions/2"):
        client.get_model_metadata(f"{name}:1", "2")
    with pytest.raises(InferenceServerException, match=r"\[404\] no model 'owner/name'"):
        client.infer("owner/name", texts("w1"))


def test_extensions_that_are_not_there_are_404(client: Any, classifier: str) -> None:
    calls = [
        client.get_log_settings,
        lambda: client.update_log_settings({"log_info": True}),
        client.get_trace_settings,
        lambda: client.get_trace_settings(classifier),
        lambda: client.update_trace_settings(classifier, {"trace_level": ["OFF"]}),
        client.get_system_shared_memory_status,
        lambda: client.register_system_shared_memory("region", "/key", 8),
        client.unregister_system_shared_memory,
        client.get_cuda_shared_memory_status,
        client.unregister_cuda_shared_memory,
    ]
    for call in calls:
        with pytest.raises(InferenceServerException, match=r"^\[404\]"):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise: unknown field"),
        ({"inputs": []}, "inputs: "),
        ({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}, "has 1 elements; its shape"),
        ({"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}]}, "it takes [-1]"),
        ({"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]}]}, "text is FP32"),
        ({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}]}, "holds int; BYTES takes"),
        ({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES"}]}, "must have one of data and"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}, "no input 'image'"),
        ({"inputs": [{"name": "text", "shape": [0], "datatype": "BYTES", "data": []}]}, "text has 0 entries"),
        ({"inputs": [{"name": "input_ids", "shape": [1, 1], "datatype": "INT64", "data": [2]}]}, "and attention_mask"),
        ({"outputs": [{"name": "vectors"}]}, "has no output 'vectors'; it has label, score, logits"),
        ({"outputs": [{"name": "label"}, {"name": "label"}]}, "asked for twice"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, "cannot be ranked"),
        ({"parameters": {"timeout": "soon"}}, "parameters.timeout"),
    ],
)
def test_refused_requests_name_value_and_remedy(
    http: Client, classifier: str, change: dict[str, Any], message: str
) -> None:
    assert message in said(http.post(f"/v2/models/{classifier}/infer", json={**infer_body("w1"), **change}), 400)


def test_masks_and_texts_that_make_no_sense(client: Any, http: Client, classifier: str) -> None:
    pair = ids([[2, 5, 3]], 4)
    pair[1].set_data_from_numpy(np.array([[1, 0, 1, 1]], dtype=np.int64))
    with pytest.raises(InferenceServerException, match=r"attention_mask\[0\] must be ones"):
        client.infer(classifier, pair)
    with pytest.raises(InferenceServerException, match="give one of them"):
        client.infer(classifier, [*texts("w1"), *ids([[2, 5, 3]], 3)])
    answer = http.post(
        f"/v2/models/{classifier}/infer", content=b"\xff", headers={"inference-header-content-length": "0"}
    )
    assert "text[0] is not UTF-8" in said(answer, 400)


def test_broken_bodies(http: Client, classifier: str, settings: Settings) -> None:
    url = f"/v2/models/{classifier}/infer"
    assert "not valid JSON" in said(http.post(url, content=b"{"), 400)
    assert "not gzip" in said(http.post(url, content=b"{}", headers={"content-encoding": "gzip"}), 400)
    assert "'br'" in said(http.post(url, content=b"{}", headers={"content-encoding": "br"}), 400)
    bomb = zlib.compress(b" " * (settings.max_request_bytes + 1))
    assert len(bomb) < 10_000
    assert "when decompressed" in said(http.post(url, content=bomb, headers={"content-encoding": "deflate"}), 413)
    long = {"inference-header-content-length": "999"}
    assert "is 999 and the body has 2" in said(http.post(url, content=b"{}", headers=long), 400)
    assert "larger than this route" in said(http.post(url, content=b" " * (settings.max_request_bytes + 1)), 413)


def test_every_path_under_v2_answers_with_the_protocols_error(http: Client, anonymous: TestClient) -> None:
    said(http.get("/v2/nothing"), 404)
    said(http.post("/v2/nothing/at/all"), 404)
    said(http.put("/v2/models/a"), 405)
    said(http.post("/v2/health/live"), 404)
    assert anonymous.get("/v2").json().keys() == {"error"}
    assert anonymous.get("/v2/models/a/ready").status_code == 401


def test_scopes(address: str, keys: Any, classifier: str) -> None:
    bearer = {"authorization": f"Bearer {keys.create('p', ['predict'])}"}
    with Client(base_url=f"http://{address}", headers=bearer) as http:
        assert http.post(f"/v2/models/{classifier}/infer", json=infer_body("w1")).status_code == 200
        assert "scope" in said(http.post(f"/v2/repository/models/{classifier}/unload"), 403)
        assert "scope" in said(http.get(f"/v2/models/{classifier}"), 403)


async def test_the_aio_client(address: str, admin_key: str, classifier: str, toys: Toys) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        client.register_plugin(Bearer(admin_key))
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(classifier)
        assert (await client.get_server_metadata())["name"] == "modelwright"
        assert (await client.get_model_metadata(classifier))["name"] == classifier
        assert (await client.get_model_config(classifier))["name"] == classifier
        assert (await client.get_inference_statistics(classifier))["model_stats"]
        for binary in (True, False):
            for packed in (None, "gzip", "deflate"):
                result = await client.infer(
                    classifier,
                    texts("w1", binary=binary, module=triton_aio),
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                )
                assert output(result, "label") == ["b"]
        name = toys.publish(f"aio-{new_id('')[:8]}").model.name
        await client.unload_model(name)
        assert not await client.is_model_ready(name)
        await client.load_model(name)
        assert await client.is_model_ready(name)
        assert name in {entry["name"] for entry in await client.get_model_repository_index()}
        with pytest.raises(InferenceServerException, match="404"):
            await client.get_log_settings()
