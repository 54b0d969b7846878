"""The registry over HTTP: every form of a model's name, versions, aliases, deletion."""

import pytest
from fastapi.testclient import TestClient

from app.core.ids import new_id
from app.registry.files import FileRepository
from app.registry.jobs import JobRepository
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import FileRow, JobRow, VersionRow
from tests.integration.helpers import error, finish_all

SERVING = {
    "task": "text-classification",
    "labels": ["a", "b"],
    "multi_label": False,
    "max_length": 16,
    "inputs": ["input_ids", "attention_mask"],
    "outputs": ["logits"],
    "pad_token_id": 0,
}


def publish(database: Database, name: str) -> VersionRow:
    """A version as a finished job leaves it, its artifact aside."""
    with database.unit_of_work() as session:
        file = FileRow(id=new_id("file-"), filename="f", purpose="fine-tune", bytes=1, sha256="0" * 64)
        FileRepository(session).add(file)
        job = JobRow(
            id=new_id("ftjob-"),
            kind="training",
            task="text-classification",
            base_model="base",
            model_name=name,
            seed=1,
            training_file=file.id,
            request={"peft": {}, "hyperparameters": {}, "early_stopping": None, "dataset": {}, "checkpoint": {}},
            max_attempts=3,
        )
        JobRepository(session).add(job)
        values = {
            "ft_id": f"ft:base:modelwright:{name}:{job.id[-8:]}",
            "job_id": job.id,
            "base_model": "base",
            "base_revision": "r1",
            "artifact": f"artifacts/{job.id}/1",
            "digest": "0" * 64,
            "serving": SERVING,
            "metrics": {"test": {"accuracy": 0.9}},
            "datasets": {},
            "recipe": {"seed": 1},
            "parity": {"max_abs_logit_diff": 1e-6},
            "sizes": {"model.onnx": 9},
            "code_version": "modelwright test",
        }
        row = ModelRepository(session).publish(name=name, task="text-classification", values=values)
        _ = row.model.name
    return row


@pytest.fixture
def versions(database: Database) -> list[VersionRow]:
    """Three versions of a fresh name."""
    name = f"Model-{new_id('')[:8]}"
    return [publish(database, name) for _ in range(3)]


def test_versions_count_and_carry_their_provenance(client: TestClient, versions: list[VersionRow]) -> None:
    name = versions[0].model.name
    listed = client.get(f"/v1/models/{name}/versions").json()
    assert [v["version"] for v in listed["data"]] == [3, 2, 1]
    one = client.get(f"/v1/models/{name}/versions/2").json()
    assert one == listed["data"][1]
    assert one["metrics"] == {"test": {"accuracy": 0.9}}
    assert one["fine_tuned_model"] == versions[1].ft_id
    page = client.get(f"/v1/models/{name}/versions", params={"limit": 1}).json()
    assert page["has_more"]
    error(client.get(f"/v1/models/{name}/versions/9"), 404)


def test_every_form_of_a_name_resolves(client: TestClient, versions: list[VersionRow]) -> None:
    name = versions[0].model.name
    for reference, number in ((name, 3), (name.lower(), 3), (f"{name}:1", 1), (versions[1].ft_id, 2)):
        found = client.get(f"/v1/models/{reference}").json()
        assert (found["id"], found["version"], found["object"]) == (reference, number, "model")
    listed = {m["id"]: m for m in client.get("/v1/models").json()["data"]}
    assert {name, *(v.ft_id for v in versions), "all-MiniLM-L6-v2"} <= set(listed)
    for unknown in (f"{name}:9", f"{name}@nothing", "ft:no:such:id:x", "nobody", "a/b", "x" * 200):
        assert error(client.get(f"/v1/models/{unknown}"), 404)["code"] == "model_not_found"


def test_aliases_move_and_production_is_the_default(client: TestClient, versions: list[VersionRow]) -> None:
    name = versions[0].model.name
    url = f"/v1/models/{name}/aliases/production"
    assert client.put(url, json={"version": 1}).json()["version"] == 1
    assert client.get(f"/v1/models/{name}").json()["version"] == 1
    assert client.put(url, json={"version": 2}).json()["version"] == 2
    assert client.get(f"/v1/models/{name}@production").json()["version"] == 2
    assert [a["alias"] for a in client.get(f"/v1/models/{name}/aliases").json()["data"]] == ["production"]
    error(client.put(url, json={"version": 9}), 404)
    error(client.put(f"/v1/models/{name}/aliases/a b", json={"version": 1}), 400)
    assert error(client.delete(f"/v1/models/{name}:2"), 400)["code"] == "version_aliased"
    assert error(client.delete(f"/v1/models/{name}"), 400)["code"] == "version_aliased"
    assert client.delete(url).json()["deleted"]
    error(client.delete(url), 404)
    assert client.get(f"/v1/models/{name}").json()["version"] == 3


def test_deletion_takes_a_version_or_all(client: TestClient, versions: list[VersionRow]) -> None:
    name = versions[0].model.name
    assert client.delete(f"/v1/models/{name}:3").json() == {"id": f"{name}:3", "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{name}").json()["version"] == 2
    assert client.delete(f"/v1/models/{versions[1].ft_id}").status_code == 200
    assert client.delete(f"/v1/models/{name}").status_code == 200
    error(client.get(f"/v1/models/{name}"), 404)
    error(client.delete(f"/v1/models/{name}"), 404)


def test_base_models_are_named_and_prepared_when_first_asked(client: TestClient, database: Database) -> None:
    assert client.get("/v1/models/all-MiniLM-L6-v2").json()["owned_by"] == "system"
    ask = {"model": "all-MiniLM-L6-v2", "inputs": ["a"]}
    answer = client.post("/predict", json=ask, headers={"x-request-timeout-ms": "1"})
    assert error(answer, 503)["code"] == "model_preparing"
    finish_all(database)
