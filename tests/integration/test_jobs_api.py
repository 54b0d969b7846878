"""Job creation: what becomes a row, what is refused and with which words; lists, events, cancel."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.integration.helpers import INTENTS, TAGGED, create_job, error, upload_rows

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def intents(client: TestClient) -> str:
    return upload_rows(client, INTENTS)


def test_a_job_is_queued_with_its_extras_echoed(client: TestClient, intents: str) -> None:
    extras: dict[str, Any] = {
        "suffix": "echo",
        "seed": 7,
        "metadata": {"team": "support"},
        "peft": "lora",
        "early_stopping": {"patience": 1},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    }
    job = create_job(client, intents, **extras).json()
    assert job["object"] == "fine_tuning.job"
    assert (job["status"], job["model"], job["seed"], job["suffix"]) == ("queued", "all-MiniLM-L6-v2", 7, "echo")
    assert job["task"] == "text-classification"
    assert job["hyperparameters"]["n_epochs"] == 2
    assert job["hyperparameters"]["learning_rate"] == "auto"
    assert (job["peft"]["type"], job["peft"]["r"]) == ("lora", 16)
    assert job["early_stopping"] == {"patience": 1, "threshold": 0.0, "metric": None}
    assert client.get(f"{JOBS}/{job['id']}").json() == job
    assert client.post(f"{JOBS}/{job['id']}/cancel").json()["status"] == "cancelled"
    again = error(client.post(f"{JOBS}/{job['id']}/cancel"), 400)
    assert (again["code"], "has cancelled" in again["message"]) == ("job_ended", True)
    events = client.get(f"{JOBS}/{job['id']}/events").json()["data"]
    assert [e["message"] for e in events] == ["Asked to be cancelled", f"Created fine-tuning job: {job['id']}"]


def test_the_task_is_inferred_from_the_columns(client: TestClient) -> None:
    tagged = upload_rows(client, TAGGED)
    assert create_job(client, tagged, suffix="infer-tags").json()["task"] == "token-classification"
    multi = upload_rows(client, [{"text": f"t{i}", "labels": ["a", "b"][: i % 3]} for i in range(8)])
    assert create_job(client, multi, suffix="infer-multi").json()["task"] == "text-classification"


def test_columns_may_be_mapped(client: TestClient) -> None:
    file_id = upload_rows(client, [{"utterance": r["text"], "intent": r["label"]} for r in INTENTS])
    found = error(create_job(client, file_id, task="text-classification"), 400)
    assert (found["code"], found["param"]) == ("missing_column", "training_file")
    assert "column 'text' is missing; the file has 'utterance', 'intent'" in found["message"]
    mapped = create_job(client, file_id, suffix="mapped", dataset={"text": "utterance", "label": "intent"})
    assert mapped.json()["dataset"] == {"text": "utterance", "label": "intent"}
    assert (
        "no field" in error(create_job(client, file_id, task="text-classification", dataset={"x": "y"}), 400)["message"]
    )


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        ([{"text": f"t{i}", "label": "same"} for i in range(9)], "one_label", "holds 1 label ('same')"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], "too_few_rows", "2 rows"),
        ([*INTENTS, {"text": "b"}], "invalid_dataset", "line 13: column 'label' must be a non-empty string"),
        ([*INTENTS, {"text": " ", "label": "pay"}], "invalid_dataset", "line 13: column 'text'"),
        ([{"text": f"t{i}", "label": i / 3} for i in range(9)], "invalid_dataset", "line 1: column 'label'"),
        (
            [*TAGGED, {"tokens": ["a", "b"], "ner_tags": ["O"]}],
            "invalid_dataset",
            "line 7: 'tokens' and 'ner_tags' differ in length",
        ),
        ([*TAGGED, {"tokens": ["a"], "ner_tags": ["PER"]}], "invalid_dataset", "line 7: column 'ner_tags'"),
        ([{"tokens": ["a"], "ner_tags": ["O"]} for _ in range(5)], "one_label", "every tag in 'ner_tags' is O"),
        ([{"question": "q"} for _ in range(5)], "missing_column", "no task fits the columns 'question'"),
    ],
)
def test_bad_rows_are_refused_at_once(client: TestClient, rows: list[dict[str, Any]], code: str, words: str) -> None:
    found = error(create_job(client, upload_rows(client, rows)), 400)
    assert (found["code"], found["param"]) == (code, "training_file")
    assert words in found["message"]


def test_the_validation_file_is_checked_too(client: TestClient, intents: str) -> None:
    other = upload_rows(client, TAGGED)
    found = error(create_job(client, intents, validation_file=other), 400)
    assert (found["code"], found["param"]) == ("missing_column", "validation_file")


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        (
            {"hyperparameters": {"n_epochs": 0}},
            "invalid_value",
            "hyperparameters.n_epochs",
            "greater than or equal to 1, not 0",
        ),
        ({"hyperparameters": {"epochs": 3}}, "unknown_field", "hyperparameters.epochs", "did you mean n_epochs?"),
        ({"colour": "red"}, "unknown_field", "colour", "unknown field"),
        ({"model": "bert-huge"}, "model_not_found", "model", "no base model 'bert-huge'; there are all-MiniLM-L6-v2"),
        ({"model": "../../etc"}, "model_not_found", "model", "no base model"),
        ({"training_file": "file-none"}, "file_not_found", "training_file", "no file 'file-none'"),
        ({"task": "juggling"}, "invalid_value", "task", "not 'juggling'"),
        ({"peft": "magic"}, "invalid_value", "peft", "'magic'"),
        ({"peft": {"type": "lora", "rank": 8}}, "unknown_field", "peft.rank", "unknown field"),
        ({"suffix": "ft"}, "invalid_request", "suffix", "reserved"),
        ({"suffix": "a/b"}, "invalid_value", "suffix", "'a/b'"),
        ({"early_stopping": {"metric": "bleu"}}, "invalid_request", "early_stopping.metric", "accuracy, macro_f1"),
        ({"metadata": {"k": "v\0"}}, "invalid_value", "metadata.k", "NUL"),
        (
            {"hyperparameters": {"learning_rate": 0.1, "learning_rate_multiplier": 2}},
            "invalid_value",
            "hyperparameters",
            "not both",
        ),
        ({"method": {"type": "dpo"}}, "invalid_value", "method.type", "'dpo'"),
    ],
)
def test_bad_requests_name_field_value_and_remedy(  # noqa: PLR0917  (one row of the table above)
    client: TestClient, intents: str, body: dict[str, Any], code: str, param: str, words: str
) -> None:
    request = {"model": "all-MiniLM-L6-v2", "training_file": intents, **body}
    found = error(client.post(JOBS, json=request), 400)
    assert (found["code"], found["param"]) == (code, param)
    assert words in found["message"]
    assert found["type"] == "invalid_request_error"


def test_bodies_that_are_no_json(client: TestClient) -> None:
    found = error(client.post(JOBS, content=b"{oops", headers={"content-type": "application/json"}), 400)
    assert found["code"] == "invalid_json"
    assert error(client.post(JOBS, json={}), 400)["code"] == "missing_field"
    assert error(client.post(JOBS, json=[1]), 400)["type"] == "invalid_request_error"


def test_a_name_keeps_its_task_and_its_spelling(client: TestClient, intents: str) -> None:
    create_job(client, intents, suffix="Sorter")
    assert create_job(client, intents, suffix="sorter").status_code == 200
    found = error(create_job(client, upload_rows(client, TAGGED), suffix="SORTER"), 400)
    assert (found["code"], found["param"]) == ("task_mismatch", "suffix")


def test_lists_filter_by_metadata_and_page(client: TestClient, intents: str) -> None:
    ids = [
        create_job(client, intents, suffix="paged", metadata={"run": "p", "n": str(i)}).json()["id"] for i in range(3)
    ]
    page = client.get(JOBS, params={"metadata[run]": "p", "limit": 2}).json()
    assert ([j["id"] for j in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    rest = client.get(JOBS, params={"metadata[run]": "p", "after": page["data"][-1]["id"]}).json()
    assert [j["id"] for j in rest["data"]] == ids[:1]
    assert client.get(JOBS, params={"metadata[n]": "1", "metadata[run]": "p"}).json()["data"][0]["id"] == ids[1]
    plain = create_job(client, intents, suffix="paged").json()["id"]
    without = [j["id"] for j in client.get(JOBS, params={"metadata": "null"}).json()["data"]]
    assert plain in without and not set(ids) & set(without)
    error(client.get(JOBS, params={"colour": "red"}), 400)
    error(client.get(JOBS, params={"limit": "0"}), 400)


@pytest.mark.parametrize("path", ["", "/cancel", "/events"])
def test_unknown_jobs(client: TestClient, path: str) -> None:
    method = "POST" if path == "/cancel" else "GET"
    assert (
        "no fine-tuning job 'ftjob-none'" in error(client.request(method, f"{JOBS}/ftjob-none{path}"), 404)["message"]
    )
