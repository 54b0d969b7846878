"""Probes, metrics, documentation, and requests no route should choke on."""

import re

import pytest
from fastapi.testclient import TestClient

from tests.integration.helpers import error


def test_liveness_needs_nothing_and_readiness_says_what_is_missing(anonymous: TestClient) -> None:
    assert anonymous.get("/health/live").json() == {"live": True}
    ready = anonymous.get("/health/ready")
    assert ready.status_code == 503  # no worker runs in this tier
    checks = ready.json()["checks"]
    assert checks["postgres"]["ok"]
    assert checks["inference"]["detail"].startswith("no live inference worker: start one with")
    assert checks["trainer"]["detail"].startswith("no live trainer worker")


def test_metrics_count_requests_by_route(client: TestClient) -> None:
    client.get("/v1/files/file-none")
    text = client.get("/metrics").text
    assert 'modelwright_http_requests_total{method="GET",route="/v1/files/{file_id}",status="404"}' in text
    assert "modelwright_predict_queue_tokens 0.0" in text
    assert "file-none" not in text


def test_the_documentation_has_examples(anonymous: TestClient) -> None:
    page = anonymous.get("/docs")
    assert page.status_code == 200
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) >= 2
    for asset in assets:  # nothing from elsewhere: the page works beside a closed network
        assert anonymous.get(asset).status_code == 200, asset
    spec = anonymous.get("/openapi.json").json()
    body = spec["paths"]["/v1/fine_tuning/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["examples"]) >= 2
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary") and (operation.get("description") or path.startswith("/health")), (
                method,
                path,
            )


def test_request_ids_come_back(anonymous: TestClient) -> None:
    assert anonymous.get("/health/live", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert (
        anonymous.get("/health/live", headers={"x-request-id": "no\tgood"}).headers["x-request-id"].startswith("req_")
    )


def test_unknown_routes_and_methods_have_the_envelope(client: TestClient) -> None:
    assert error(client.get("/v1/nowhere"), 404)["code"] == "unknown_route"
    assert error(client.patch("/v1/files"), 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"model": "nobody", "inputs": ["a"]}, "model", "no model 'nobody'"),
        ({"inputs": ["a"]}, "model", "required"),
        ({"model": "m", "inputs": ["a"], "parameters": {"topk": 1}}, "parameters.topk", "unknown field"),
        ({"model": "m", "inputs": ["a"], "x": 1}, "x", "unknown field"),
        ({"model": "m\0", "inputs": ["a"]}, "model", "no model"),
    ],
)
def test_bad_predictions(client: TestClient, body: dict[str, object], param: str, words: str) -> None:
    answer = client.post("/predict", json=body)
    found = error(answer, 404 if words.startswith("no model") else 400)
    assert found["param"] == param
    assert words in found["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/a%00b",
        "/v1/fine_tuning/jobs/a%00b",
        "/v1/models/a%00b",
        "/v1/models/a%00/versions",
        "/v1/files/" + "x" * 5000,
    ],
)
def test_odd_ids_are_not_found_and_never_a_5xx(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (400, 404)
