"""The repository of the Open Inference Protocol with the stock triton client: what is loaded, and how."""

import json
from typing import Any

import pytest
from httpx2 import Client
from tritonclient.utils import InferenceServerException

from app.core.ids import new_id
from tests.integration.oip.toy_oip import Toys, output, texts


def index(client: Any, name: str) -> dict[str, tuple[str, str]]:
    entries = client.get_model_repository_index()
    return {e["version"]: (e["state"], e["reason"]) for e in entries if e["name"] == name}


def test_unload_and_load(client: Any, http: Client, toys: Toys) -> None:
    name = toys.publish(f"pin-{new_id('')[:8]}").model.name
    assert index(client, name) == {"1": ("READY", "")}
    client.unload_model(name, unload_dependents=True)
    assert index(client, name) == {"1": ("UNAVAILABLE", "unloaded")}
    listed = http.post("/v2/repository/index", json={"ready": True}).json()
    assert name not in {entry["name"] for entry in listed}
    assert not client.is_model_ready(name)
    with pytest.raises(InferenceServerException, match=rf"\[400\] {name}:1 is unloaded: load it"):
        client.infer(name, texts("w1"))
    refused = http.post("/predict", json={"model": f"{name}:1", "inputs": ["w1"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "version_unloaded")
    client.load_model(name)
    assert index(client, name) == {"1": ("READY", "")}
    assert output(client.infer(name, texts("w1")), "label") == ["b"]
    client.load_model(name, config=json.dumps({"max_batch_size": 8, "dynamic_batching": {}}))
    assert client.get_model_config(name)["max_batch_size"] == 8
    client.load_model(name)
    assert client.get_model_config(name)["max_batch_size"] == 1024
    with pytest.raises(InferenceServerException, match=r"\[400\] config: max_batch_size"):
        client.load_model(name, config=json.dumps({"max_batch_size": 0}))
    with pytest.raises(InferenceServerException, match=r"\[400\].*versions are made by jobs alone"):
        client.load_model(name, config="{}", files={"file:1/model.onnx": b"graph"})
    with pytest.raises(InferenceServerException, match=r"\[400\] config: instance_group"):
        client.load_model(name, config=json.dumps({"instance_group": []}))
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match=r"\[404\] no model"):
            call("nobody")


def test_a_load_that_fails_says_why(client: Any, toys: Toys) -> None:
    row = toys.publish(f"broken-{new_id('')[:8]}")
    with (toys.folders[row.id][0] / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InferenceServerException, match=r"\[503\].*hashes to"):
        client.load_model(row.model.name)
