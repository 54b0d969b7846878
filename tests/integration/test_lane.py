"""The fast lane: whatever is sent to a hot route, the answer is the one that FastAPI gives without the lane."""

import asyncio
import gc
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
from fastapi import APIRouter, Request
from fastapi.testclient import TestClient
from httpx2 import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import middleware
from app.api.deps import CallerDep, ServicesDep, requires
from app.api.hot import HotRoutes, hot
from app.api.lane import FastLane
from app.auth.keys import Caller, KeyService
from app.contracts.catalogue import BASE_ENCODERS
from app.core.errors import NotFound
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database
from tests.integration.toy_service import ToyService, toy_service

NAME = "lane-toy"
LABELS = ("spam", "hate", "rude")
LIMIT = 20_000


@dataclass
class Pair:
    """A gateway as it is, one without the lane, and what the first one's lane handed on to FastAPI."""

    service: ToyService
    without: TestClient
    handed_on: list[str]

    def both(self, method: str, path: str, content: bytes | list[bytes], **call: Any) -> tuple[Response, Response]:
        """A list of chunks goes without a content-length."""
        self.handed_on.clear()
        clients = (self.service.client, self.without)
        first, second = (
            client.request(method, path, content=iter(content) if isinstance(content, list) else content, **call)
            for client in clients
        )
        return first, second


@pytest.fixture(scope="module")
def pair(
    settings: Settings, database: Database, admin_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    home, changes = tmp_path_factory.mktemp("lane"), {"max_request_bytes": LIMIT}
    with toy_service(settings, database, admin_key, home, **changes) as service:
        service.add(NAME)
        service.add(f"{NAME}-rules", labels=LABELS, multi_label=True)
        service.add(BASE_ENCODERS, base_model=NAME, task="sentence-embedding")
        handed_on: list[str] = []
        lane = service.client.app.middleware_stack  # type: ignore[attr-defined]
        while not isinstance(lane, FastLane):
            lane = lane.app
        lane._app = recorded(lane._app, handed_on)
        bare = create_app(settings.model_copy(update={"home": home, **changes}))
        bare.user_middleware = [m for m in bare.user_middleware if m.cls is not FastLane]  # type: ignore[comparison-overlap, redundant-expr]
        headers = {"authorization": f"Bearer {admin_key}"}
        with TestClient(bare, raise_server_exceptions=False, headers=headers) as without:
            yield Pair(service, without, handed_on)


def recorded(app: ASGIApp, paths: list[str]) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await app(scope, receive, send)

    return call


def seen(answer: Response) -> tuple[Any, ...]:
    """What a caller acts on: all but the ids."""
    body: Any = answer.content
    if body and answer.headers.get("content-type") == "application/json":
        body = answer.json()
        if isinstance(body, dict) and "outputs" in body:
            body = {**body, "id": str(body.get("id"))[:5]}
        if isinstance(body, dict) and "results" in body:
            body = {**body, "id": body["id"][:5]}
    headers = {name: value for name, value in answer.headers.items() if name != "x-request-id"}
    return answer.status_code, headers, body


JSON = {"content-type": "application/json"}
PLAIN = f'{{"model": "{NAME}", "inputs": ["w1 w2", "w3"]}}'.encode()


def with_parameters(parameters: str) -> bytes:
    return f'{{"model": "{NAME}", "inputs": "w1", "parameters": {parameters}}}'.encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", PLAIN),
        ("/predict", f' \n{{"inputs": "w1", "model": "{NAME}:1"}}\n '),
        ("/predict", f'{{"model": "nobody", "inputs": "w2", "model": "{NAME}"}}'),
        ("/predict", f'{{"model": "{NAME}", "inputs": ["\\u00e9 \\ud83d\\ude00 w3"]}}'),
        ("/predict", with_parameters('{"top_k": 2}')),
        ("/predict", with_parameters('{"top_k": "2", "return_all_scores": null}')),
        ("/predict", with_parameters('{"top_k": 2.0}')),
        ("/predict", with_parameters('{"return_all_scores": "yes"}')),
        ("/predict", with_parameters('{"top_k": 1, "top_k": 2}')),
        # What the endpoint refuses.
        ("/predict", '{"model": "nobody", "inputs": ["a"]}'),
        ("/predict", f'{{"model": "{NAME}", "inputs": []}}'),
        ("/predict", f'{{"model": "{NAME}", "inputs": [NaN]}}'),
        ("/predict", f'{{"model": "{NAME}", "inputs": [1e999, null]}}'),
        ("/predict", f'{{"model": "{NAME}", "inputs": [{{"tokens": ["a"]}}]}}'),
        ("/predict", with_parameters('{"threshold": 0.5, "dimensions": 3}')),
        ("/v1/embeddings", f'{{"model": "{NAME}", "input": "w1 w2"}}'),
        ("/v1/embeddings", f'{{"model": "{NAME}:1", "input": "w1 w2", "encoding_format": "base64"}}'),
        ("/v1/moderations", f'{{"model": "{NAME}-rules", "input": ["w1", "w2"]}}'),
        ("/v1/moderations", '{"input": ["w1", "w2"]}'),
        (
            f"/v2/models/{NAME}/infer",
            '{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w1"]}]}',
        ),
        (
            f"/v2/models/{NAME}/versions/1/infer",
            '{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w1"]}], "id": "7"}',
        ),
        (f"/v2/models/{NAME}/infer", '{"inputs": [{"name": "text"'),
        (f"/v2/models/{NAME}/versions/9/infer", '{"inputs": []}'),
    ],
)
def test_plain_calls_take_the_lane(pair: Pair, path: str, body: str | bytes) -> None:
    content = body if isinstance(body, bytes) else body.encode()
    found, expected = pair.both("POST", path, content, headers=JSON)
    assert seen(found) == seen(expected)
    assert not pair.handed_on


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        PLAIN + b"}",
        PLAIN.replace(b'"w3"]', b'"w3",]'),
        PLAIN.replace(b"w3", b"\xff\xfe"),
        PLAIN.replace(b"w3", b"a\nb"),
        PLAIN.replace(b"w3", b"\\ud800"),
        PLAIN.decode().encode("utf-16"),
        PLAIN.decode().encode("utf-8-sig"),
        b'{"model": "m", "inputs": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"model": "m", "inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"inputs": ["a"]}',
        b'{"model": "m", "inputs": {"text": "a"}}',
        b'{"model": "m", "inputs": ["a"], "x": 1, "y": 2}',
        b'{"model": 7, "inputs": ["a"]}',
        b'{"model": "", "inputs": ["a"]}',
        with_parameters('{"topk": 1}'),
        with_parameters('{"top_k": 0}'),
        with_parameters('{"top_k": true}'),
        with_parameters('{"top_k": 2.5}'),
        with_parameters('{"top_k": ' + "9" * 5000 + "}"),
        with_parameters('{"threshold": NaN}'),
        with_parameters('{"threshold": 1e999}'),
        with_parameters("null"),
        b'{"model": "' + b"m" * LIMIT + b'", "inputs": ["a"]}',
        PLAIN + b" " * LIMIT,
    ],
    ids=lambda body: repr(body[:60]),
)
def test_odd_bodies(pair: Pair, body: bytes) -> None:
    found, expected = pair.both("POST", "/predict", body, headers=JSON)
    assert seen(found) == seen(expected)
    found, expected = pair.both("POST", "/predict", [body[:7], body[7:]], headers=JSON)
    assert seen(found) == seen(expected)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("content-type", "application/json; charset=utf-8"),
        ("content-type", "Application/JSON"),
        ("content-type", "application/vnd.example+json"),
        ("content-type", "text/plain"),
        ("content-type", ""),
        *(("x-request-timeout-ms", value) for value in ("5000", " 5000", "5_000", "", "0", "600001", "abc", "5000.0")),
        *(("x-sticky-key", value) for value in ("somebody", "", "x" * 257, "\xe9")),
        ("x-request-id", "abc-1"),
    ],
)
def test_headers(pair: Pair, header: str, value: str) -> None:
    headers = {name.encode(): text.encode("latin-1") for name, text in {**JSON, header: value}.items()}
    found, expected = pair.both("POST", "/predict", PLAIN, headers=headers)
    assert seen(found) == seen(expected)
    twice = [*headers.items(), (header.encode(), b"17000")]
    found, expected = pair.both("POST", "/predict", PLAIN, headers=twice)
    assert seen(found) == seen(expected)


@pytest.mark.parametrize("body", [PLAIN, b"{", b'{"inputs": 1}'], ids=["plain", "broken", "wrong"])
def test_a_key_without_the_scope(pair: Pair, keys: KeyService, body: bytes) -> None:
    for path in ("/predict", "/v1/embeddings", "/v1/moderations", f"/v2/models/{NAME}/infer"):
        headers = {**JSON, "authorization": f"Bearer {keys.create('no predictions', ['read', 'train'])}"}
        found, expected = pair.both("POST", path, body, headers=headers)
        assert seen(found) == seen(expected)
        assert pair.handed_on == [path]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/predict"),
        ("HEAD", "/predict"),
        ("PUT", "/predict"),
        ("OPTIONS", "/v1/embeddings"),
        ("POST", "/predict/"),
        ("POST", "/predict?x=1"),
        ("POST", "/Predict"),
        ("POST", f"/v2/models/{NAME}/versions/0/infer"),
        ("POST", f"/v2/models/{NAME}/versions/1/infer/"),
        ("POST", f"/v2/models/{'n' * 300}/infer"),
        ("POST", "/v2/models//infer"),
        ("GET", f"/v2/models/{NAME}/infer"),
        ("POST", "/infer"),
    ],
)
def test_other_paths_and_methods(pair: Pair, method: str, path: str) -> None:
    found, expected = pair.both(method, path, PLAIN, headers=JSON, follow_redirects=False)
    assert seen(found) == seen(expected)


@pytest.mark.parametrize("value", ['"w1 \\ud800"', '{"tokens": ["w1", "\\udfff"]}', '{"text": "\\ud83d"}'])
def test_half_a_surrogate_pair_is_refused(pair: Pair, value: str) -> None:
    for answer in pair.both("POST", "/predict", f'{{"model": "{NAME}", "inputs": [{value}]}}'.encode(), headers=JSON):
        assert answer.status_code == 400, answer.text


def test_compressed_bodies(pair: Pair) -> None:
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w1"]}]}
    for content in (gzip.compress(json.dumps(body).encode()), gzip.compress(b" " * 4 * LIMIT), b"no gzip"):
        headers = {"content-encoding": "gzip", "accept-encoding": "gzip"}
        found, expected = pair.both("POST", f"/v2/models/{NAME}/infer", content, headers=headers)
        assert found.status_code == expected.status_code and found.content == expected.content
        assert not pair.handed_on


def test_calls_are_counted_by_route_and_answered_ones_are_logged_at_debug(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, int]] = []
    levels = {
        level: lambda _event, *, status, level=level, **_: lines.append((level, status)) for level in ("debug", "info")
    }
    monkeypatch.setattr(middleware, "log", SimpleNamespace(**levels))
    client = pair.service.client
    client.post("/predict", content=PLAIN, headers=JSON)
    client.post("/predict", json={"model": "nobody", "inputs": "a"})
    client.get("/v1/models")
    assert lines == [("debug", 200), ("info", 404), ("info", 200)]
    text = client.get("/metrics").text
    for status in ("200", "404"):
        assert f'modelwright_http_requests_total{{method="POST",route="/predict",status="{status}"}}' in text
    client.post(f"/v2/models/{NAME}/infer", content=b"{}")
    assert 'route="/v2/models/{model:path}/infer",status="400"' in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/predict", "/v1/embeddings", "/v1/moderations"])
def test_the_document_still_describes_them(pair: Pair, path: str) -> None:
    spec = pair.service.client.get("/openapi.json").json()
    found = spec["paths"][path]["post"]
    body, answer = {
        "/predict": ("PredictBody", "PredictionObject"),
        "/v1/embeddings": ("EmbeddingBody", "EmbeddingList"),
        "/v1/moderations": ("ModerationBody", "ModerationList"),
    }[path]
    assert found["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{body}")
    assert found["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{answer}")
    sticky = [] if path == "/v1/embeddings" else ["x-sticky-key"]
    assert [(p["name"], p["in"]) for p in found["parameters"]] == [
        (name, "header") for name in ["x-request-timeout-ms", *sticky]
    ]


def test_a_route_that_asks_for_more_than_the_lane_gives_stops_the_start() -> None:
    router = APIRouter()

    @router.post("/odd", dependencies=[requires("predict")])
    @hot
    async def odd(page: int) -> None:
        pass

    with pytest.raises(RuntimeError, match="/odd cannot be hot"):
        HotRoutes([router])


def test_an_error_leaves_no_cycle_for_the_collector() -> None:
    """Refused by the thousand a second, they would be 70 objects each."""
    router, gone = APIRouter(), []

    class Local:
        pass

    @router.post("/broken", dependencies=[requires("predict")])
    @hot
    async def broken(services: ServicesDep, caller: CallerDep, request: Request) -> None:
        local = Local()
        gone.append(ref(local))
        problem = NotFound("nothing here")
        raise problem

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    async def call() -> list[Message]:
        sent: list[Message] = []
        state = {"caller": Caller("someone", ["predict"])}
        scope = {"type": "http", "method": "POST", "path": "/broken", "headers": [], "state": state}

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        plane = SimpleNamespace(refusal=lambda _: None)
        services: Any = SimpleNamespace(settings=SimpleNamespace(max_request_bytes=LIMIT), plane=plane)
        await FastLane(app, HotRoutes([router]), services)(scope, receive, send)
        return sent

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(call())[0]["status"] == 404
        assert gone[0]() is None
    finally:
        gc.enable()
