"""Batches as the stock client sees them, over a gateway and a worker of this process."""

import json
from collections.abc import Iterator
from io import BytesIO
from time import monotonic, sleep
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, NotFoundError, OpenAI
from sqlalchemy import delete, select, update

from app.contracts.webhooks import EVENT_TYPES
from app.core.ids import new_id
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database
from app.registry.tables import BatchRow, VersionRow, WebhookDeliveryRow, WebhookEndpointRow
from tests import toy_artifact
from tests.integration.helpers import error, jsonl, upload
from tests.integration.plane.toy_plane import Worker
from tests.integration.test_models_api import publish

ENDED = ("completed", "failed", "expired", "cancelled")


def line(number: int, word: int, **more: Any) -> dict[str, Any]:
    body = {"model": "batched", "inputs": [f"w{word}"], **more}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/predict", "body": body}


@pytest.fixture(scope="module")
def fast(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"batch_concurrency": 4, "heartbeat_seconds": 0.05, "max_upload_bytes": 8_000_000}
    )


@pytest.fixture(scope="module")
def gateway(fast: Settings, admin_key: str) -> Iterator[TestClient]:
    headers = {"authorization": f"Bearer {admin_key}"}
    with TestClient(create_app(fast), raise_server_exceptions=False, headers=headers) as client:
        yield client


@pytest.fixture(scope="module")
def worker(database: Database, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Serves `batched`, whose labels are a, b and c."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    version = publish(database, "batched")
    digest = toy_artifact.build(artifacts / version.id)
    (artifacts / version.id / "digest").write_text(digest)
    with database.unit_of_work() as session:
        session.execute(update(VersionRow).where(VersionRow.id == version.id).values(digest=digest))
    found = Worker(redis_url, artifacts)
    found.consumer.start()
    yield found
    found.consumer.stop()


@pytest.fixture(autouse=True)
def _clean(database: Database) -> Iterator[None]:
    yield
    with database.unit_of_work() as session:
        for table in (BatchRow, WebhookDeliveryRow, WebhookEndpointRow):
            session.execute(delete(table))


def until_ended(gateway: TestClient, batch_id: str) -> dict[str, Any]:
    until = monotonic() + 30
    while (found := gateway.get(f"/v1/batches/{batch_id}").json())["status"] not in ENDED:
        assert monotonic() < until, found
        sleep(0.05)
    return dict(found)


def create(gateway: TestClient, rows: list[dict[str, Any]] | bytes, **more: Any) -> dict[str, Any]:
    data = rows if isinstance(rows, bytes) else jsonl(rows)
    file_id = upload(gateway, data, purpose="batch").json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/predict", "completion_window": "24h", **more}
    answer = gateway.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_stock_client_runs_a_batch(stock: OpenAI, gateway: TestClient, worker: Worker) -> None:
    rows = [line(k, k % 32) for k in range(150)]
    rows[7]["body"]["model"] = "nobody"
    file = stock.files.create(file=("in.jsonl", BytesIO(jsonl(rows))), purpose="batch")
    made = stock.batches.create(
        input_file_id=file.id,
        endpoint="/predict",  # type: ignore[arg-type]
        completion_window="24h",
        metadata={"night": "1"},
        output_expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (made.status, made.metadata, made.expires_at) == ("validating", {"night": "1"}, made.created_at + 86_400)
    until_ended(gateway, made.id)
    done = stock.batches.retrieve(made.id)
    assert done.status == "completed"
    assert done.request_counts
    assert done.request_counts.model_dump() == {"total": 150, "completed": 149, "failed": 1}
    assert done.completed_at and done.finalizing_at and done.in_progress_at

    assert done.output_file_id and done.error_file_id
    output = [json.loads(row) for row in stock.files.content(done.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in output] == [f"r{k}" for k in range(150) if k != 7]
    assert {row["response"]["status_code"] for row in output} == {200}
    assert [row["response"]["body"]["outputs"][0]["label"] for row in output] == [
        "abc"[k % 32 % 3] for k in range(150) if k != 7
    ]
    assert len({row["response"]["request_id"] for row in output} | {row["id"] for row in output}) == 298
    assert all(row["error"] is None and row["id"].startswith("batch_req_") for row in output)
    (failed,) = [json.loads(row) for row in stock.files.content(done.error_file_id).text.splitlines()]
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("r7", 404)
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"

    kept = stock.files.retrieve(done.output_file_id)
    assert (kept.purpose, kept.expires_at) == ("batch_output", kept.created_at + 3600)
    assert next(iter(stock.batches.list(limit=1))).id == made.id
    with pytest.raises(BadRequestError) as refused:
        stock.batches.cancel(made.id)
    assert refused.value.code == "batch_ended"
    with pytest.raises(NotFoundError):
        stock.batches.retrieve("batch_none")


def test_an_answer_is_what_the_route_answers(gateway: TestClient, worker: Worker, fast: Settings) -> None:
    """Also a refusal, by body and status; ids aside."""
    bodies = [{"model": "batched", "inputs": ["w1"]}, {"model": "batched"}, {"model": "batched", "inputs": 5}, {"x": 1}]
    rows = [{**line(k, 1), "body": body} for k, body in enumerate(bodies)]
    done = until_ended(gateway, create(gateway, rows)["id"])
    lines = [
        json.loads(row)
        for kind in ("output_file_id", "error_file_id")
        for row in gateway.get(f"/v1/files/{done[kind]}/content").text.splitlines()
    ]
    assert len(lines) == len(bodies)
    for row, body in zip(lines, bodies, strict=True):
        online = gateway.post("/predict", json=body)
        expected = {**online.json(), "id": None} if online.status_code == 200 else online.json()
        found = row["response"]["body"]
        assert (row["response"]["status_code"], {**found, "id": None} if "id" in found else found) == (
            online.status_code,
            expected,
        )


def test_moderations_in_a_batch(gateway: TestClient, worker: Worker) -> None:
    rows = [{"custom_id": "m", "method": "POST", "url": "/v1/moderations", "body": {"input": "x", "model": "nobody"}}]
    done = until_ended(gateway, create(gateway, rows, endpoint="/v1/moderations")["id"])
    (found,) = gateway.get(f"/v1/files/{done['error_file_id']}/content").text.splitlines()
    online = gateway.post("/v1/moderations", json=rows[0]["body"])
    assert json.loads(found)["response"]["body"] == online.json()
    assert online.json()["error"]["code"] == "model_not_found"


def test_bad_lines_fail_the_batch_before_anything_is_asked(gateway: TestClient) -> None:
    good = json.dumps(line(1, 1))
    bad = {
        good: "duplicate_custom_id",
        json.dumps({**line(2, 1), "url": "/v1/embeddings"}): "invalid_url",
        json.dumps({**line(3, 1), "method": "GET"}): "invalid_line",
        json.dumps({**line(4, 1), "more": 1}): "invalid_line",
        json.dumps(line(5, 1, stream=True)): "stream_not_supported",
        json.dumps({**line(6, 1), "custom_id": 6}): "invalid_line",
        json.dumps({**line(7, 1), "body": []}): "invalid_line",
        "{nope": "invalid_json_line",
    }
    batch = create(gateway, "\n\n".join([good, *bad]).encode())
    done = until_ended(gateway, batch["id"])
    assert (done["status"], done["output_file_id"], done["error_file_id"]) == ("failed", None, None)
    assert [(e["code"], e["line"]) for e in done["errors"]["data"]] == [
        (code, 3 + 2 * k) for k, code in enumerate(bad.values())
    ]
    assert done["errors"]["data"][2]["param"] == "method"
    many = until_ended(gateway, create(gateway, b"{nope\n" * 300)["id"])
    assert len(many["errors"]["data"]) == 100
    empty = until_ended(gateway, create(gateway, b"\n\n")["id"])
    assert [e["code"] for e in empty["errors"]["data"]] == ["empty_file"]


def test_too_many_lines(gateway: TestClient) -> None:
    row = '{"custom_id":"%d","method":"POST","url":"/predict","body":{}}\n'
    done = until_ended(gateway, create(gateway, "".join(row % k for k in range(50_001)).encode())["id"])
    assert [e["code"] for e in done["errors"]["data"]] == ["too_many_lines"]


def test_what_a_batch_refuses(gateway: TestClient) -> None:
    batch_file = upload(gateway, jsonl([line(0, 0)]), purpose="batch").json()["id"]
    other = upload(gateway, b"x", purpose="user_data").json()["id"]

    def refused(**body: Any) -> dict[str, Any]:
        full = {"input_file_id": batch_file, "endpoint": "/predict", "completion_window": "24h", **body}
        return error(gateway.post("/v1/batches", json=full), 400)

    assert refused(endpoint="/v1/responses")["param"] == "endpoint"
    assert refused(endpoint="/v1/chat/completions")["code"] == "endpoint_not_served"
    assert refused(completion_window="1h")["param"] == "completion_window"
    assert refused(input_file_id="file-none")["code"] == "file_not_found"
    assert "purpose" in refused(input_file_id=other)["message"]
    assert refused(output_expires_after={"anchor": "created_at", "seconds": 1})["param"]
    body = {"input_file_id": batch_file, "endpoint": "/predict", "completion_window": "24h"}
    key = {"idempotency-key": new_id("k")}
    first, again = (gateway.post("/v1/batches", json=body, headers=key) for _ in range(2))
    assert first.json() == again.json() and again.headers["idempotent-replayed"] == "true"


def test_webhooks_hear_of_the_end(gateway: TestClient, worker: Worker, database: Database) -> None:
    with database.unit_of_work() as session:
        session.add(WebhookEndpointRow(id="we_b", name="b", url="https://x", event_types=list(EVENT_TYPES), secret="s"))
    good, bad = create(gateway, [line(0, 0)])["id"], create(gateway, b"nope")["id"]
    assert [until_ended(gateway, b)["status"] for b in (good, bad)] == ["completed", "failed"]
    with database.unit_of_work() as session:
        events = session.execute(select(WebhookDeliveryRow.subject, WebhookDeliveryRow.event_type)).all()
    assert {tuple(e) for e in events} == {(good, "batch.completed"), (bad, "batch.failed")}
