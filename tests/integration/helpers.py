"""Small request builders that the integration tests share."""

import json
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import func, update

from app.registry.session import Database
from app.registry.tables import JobRow

INTENTS = [{"text": f"{word} number {i}", "label": word} for i in range(6) for word in ("pay", "cancel")]
TAGGED = [{"tokens": ["Ada", "in", "London"], "ner_tags": ["B-PER", "O", "B-LOC"]} for _ in range(6)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def upload(client: TestClient, data: bytes, name: str = "upload", **form: str) -> Response:
    form = {"purpose": "fine-tune", **form}
    return client.post("/v1/files", files={"file": (name, data)}, data=form)


def upload_rows(client: TestClient, rows: list[dict[str, Any]]) -> str:
    answer = upload(client, jsonl(rows))
    assert answer.status_code == 200, answer.text
    file_id: str = answer.json()["id"]
    return file_id


def create_job(client: TestClient, training_file: str, **body: Any) -> Response:
    return client.post(
        "/v1/fine_tuning/jobs", json={"model": "all-MiniLM-L6-v2", "training_file": training_file, **body}
    )


def error(answer: Response, status: int) -> dict[str, Any]:
    """The error envelope, after checking its shape."""
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return found


def finish_all(database: Database) -> None:
    """No job of another test waits."""
    with database.unit_of_work() as session:
        done = {"state": "cancelled", "finished_at": func.now()}
        session.execute(update(JobRow).where(JobRow.finished_at.is_(None)).values(**done))
