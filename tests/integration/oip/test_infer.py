"""`/v2` with the stock `tritonclient`, sync and aio: metadata, inference in every encoding, statistics."""

import json
import struct
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from httpx2 import Client
from tritonclient.utils import InferenceServerException

from app.api.middleware import PUBLIC
from app.core.ids import new_id
from tests.integration.oip.toy_oip import LABELS, Bearer, Toys, ids, infer_body, output, texts


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
