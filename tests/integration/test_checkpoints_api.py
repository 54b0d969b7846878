"""Pause, resume, checkpoints and `from_checkpoint` as callers see them; no worker runs."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from app.core.ids import new_id
from app.registry.checkpoints import CheckpointRepository
from app.registry.session import Database
from app.registry.tables import CheckpointRow, JobRow
from tests.integration.helpers import INTENTS, create_job, error, finish_all, upload_rows


@pytest.fixture
def job(client: TestClient, database: Database) -> dict[str, Any]:
    finish_all(database)
    answer = create_job(client, upload_rows(client, INTENTS), suffix=new_id("saved-")[:20])
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def add_checkpoint(database: Database, job_id: str, step: int) -> CheckpointRow:
    row = CheckpointRow(
        id=new_id("ftckpt-"),
        job_id=job_id,
        fence=1,
        step=step,
        reason="interval",
        key=f"checkpoints/{job_id}/1/step-{step:08d}",
        digest="0" * 64,
        bytes=3,
        metrics={"step": step, "train_loss": 0.5, "valid_accuracy": 0.9},
        ft_id=f"ft:base:org:{job_id}:ckpt-step-{step}",
    )
    with database.unit_of_work() as session:
        CheckpointRepository(session).add(row)
    return row


def post(client: TestClient, job: dict[str, Any], verb: str) -> dict[str, Any]:
    answer = client.post(f"/v1/fine_tuning/jobs/{job['id']}/{verb}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_waiting_job_rests_and_goes_on(client: TestClient, job: dict[str, Any]) -> None:
    for _ in range(2):  # a second call changes nothing
        paused = post(client, job, "pause")
        assert (paused["status"], paused["phase"]) == ("queued", "paused")
    for _ in range(2):
        assert (post(client, job, "resume")["status"], post(client, job, "resume")["phase"]) == ("queued", None)
    post(client, job, "pause")
    assert post(client, job, "cancel")["status"] == "cancelled"
    for verb in ("pause", "resume", "cancel"):
        found = error(client.post(f"/v1/fine_tuning/jobs/{job['id']}/{verb}"), 400)
        assert found["code"] == "job_ended" and "has cancelled" in found["message"]


def test_a_running_job_says_that_it_is_pausing(client: TestClient, job: dict[str, Any], database: Database) -> None:
    with database.unit_of_work() as session:
        session.execute(update(JobRow).where(JobRow.id == job["id"]).values(state="running", phase="training"))
    paused = post(client, job, "pause")
    assert (paused["status"], paused["phase"]) == ("running", "pausing")


def test_checkpoints_are_listed_newest_first_and_paged(
    client: TestClient, job: dict[str, Any], database: Database
) -> None:
    rows = [add_checkpoint(database, job["id"], step) for step in (10, 20, 30)]
    url = f"/v1/fine_tuning/jobs/{job['id']}/checkpoints"
    page = client.get(url, params={"limit": 2}).json()
    assert [c["step_number"] for c in page["data"]] == [30, 20] and page["has_more"]
    assert page["data"][0] == {
        "id": rows[2].id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": page["data"][0]["created_at"],
        "fine_tuned_model_checkpoint": rows[2].ft_id,
        "fine_tuning_job_id": job["id"],
        "metrics": {"step": 30, "train_loss": 0.5, "valid_accuracy": 0.9},
        "step_number": 30,
        "reason": "interval",
        "bytes": 3,
    }
    rest = client.get(url, params={"after": page["last_id"]}).json()
    assert [c["step_number"] for c in rest["data"]] == [10] and not rest["has_more"]
    assert error(client.get("/v1/fine_tuning/jobs/ftjob-none/checkpoints"), 404)["code"] == "not_found"


def test_asking_for_a_checkpoint_makes_one_export(client: TestClient, job: dict[str, Any], database: Database) -> None:
    row = add_checkpoint(database, job["id"], 10)
    ask = {"model": row.ft_id, "inputs": ["a"]}
    for _ in range(2):
        answer = client.post("/predict", json=ask, headers={"x-request-timeout-ms": "1"})
        assert error(answer, 503)["code"] == "checkpoint_preparing"
        assert int(answer.headers["retry-after"]) > 0
    with database.unit_of_work() as session:
        (export,) = session.scalars(select(JobRow).where(JobRow.parent_id == job["id"]))
    assert (export.kind, export.from_checkpoint, export.state) == ("export", row.id, "queued")
    listed = client.get("/v1/fine_tuning/jobs", params={"limit": 100}).json()["data"]
    assert export.id not in {j["id"] for j in listed}
    with database.unit_of_work() as session:
        failed = {"state": "failed", "finished_at": export.created_at, "error": {"code": "c", "message": "no space"}}
        session.execute(update(JobRow).where(JobRow.id == export.id).values(**failed))
    answer = client.post("/predict", json=ask, headers={"x-request-timeout-ms": "1"})
    found = error(answer, 400)
    assert found["code"] == "checkpoint_failed" and "no space" in found["message"]
    with database.unit_of_work() as session:  # exported, and its version deleted since: it answers no more
        session.execute(update(JobRow).where(JobRow.id == export.id).values(state="succeeded", error=None))
    assert error(client.post("/predict", json=ask, headers={"x-request-timeout-ms": "1"}), 404)
    unknown = client.post("/predict", json={"model": "ft:a:b:c:d:ckpt-step-1", "inputs": ["a"]})
    assert error(unknown, 404)["code"] == "model_not_found"


def test_a_job_starts_only_from_a_checkpoint_that_fits(
    client: TestClient, job: dict[str, Any], database: Database
) -> None:
    row = add_checkpoint(database, job["id"], 10)
    file_id = job["training_file"]
    made = create_job(client, file_id, from_checkpoint=row.id)
    assert made.status_code == 200 and made.json()["from_checkpoint"] == row.id
    refused = error(create_job(client, file_id, from_checkpoint=row.id, peft="lora"), 400)
    assert refused["param"] == "peft" and row.id in refused["message"]
    missing = error(create_job(client, file_id, from_checkpoint="ftckpt-none"), 400)
    assert (missing["code"], missing["param"]) == ("checkpoint_not_found", "from_checkpoint")


@pytest.mark.parametrize(
    ("checkpoint", "param"),
    [
        ({"every_steps": 0}, "checkpoint.every_steps"),
        ({"keep": 101}, "checkpoint.keep"),
        ({"often": 1}, "checkpoint.often"),
    ],
)
def test_a_policy_out_of_bounds_is_refused(
    client: TestClient, job: dict[str, Any], checkpoint: dict[str, int], param: str
) -> None:
    assert error(create_job(client, job["training_file"], checkpoint=checkpoint), 400)["param"] == param
