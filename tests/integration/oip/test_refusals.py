"""What `/v2` refuses: each answer names the value and the remedy, in the protocol's form."""

import zlib
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Client
from tritonclient.utils import InferenceServerException

from app.core.settings import Settings
from tests.integration.oip.toy_oip import ids, infer_body, said, texts


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
