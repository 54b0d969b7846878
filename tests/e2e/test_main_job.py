"""The main job through the stock openai client: upload, train, list, predict; strict response validation too."""

import csv
import io
import json
import threading
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError
from openai.types.fine_tuning import FineTuningJob

from demo.topics import topic_rows
from tests.e2e.conftest import QUICK, Service, upload, wait_for

SENTENCES = [
    {"tokens": [name, "went", "to", city, "."], "ner_tags": ["B-PER", "O", "O", "B-LOC", "O"]}
    for name in ("Ada", "Grace", "Alan", "Linus", "Edsger", "Barbara")
    for city in ("London", "Paris", "Oslo", "Rome", "Cairo", "Lima", "Tokyo", "Delhi")
]


def test_the_job_tells_what_happened(service: Service, topics: FineTuningJob) -> None:
    extra: dict[str, Any] = topics.model_extra or {}
    assert topics.fine_tuned_model is not None
    assert topics.fine_tuned_model.startswith("ft:all-MiniLM-L6-v2:modelwright:topics:")
    assert topics.trained_tokens and topics.finished_at
    assert topics.hyperparameters.n_epochs == 1
    assert isinstance(topics.hyperparameters.batch_size, int)  # resolved from `auto`
    assert (extra["task"], extra["attempt"], extra["progress"]["percent"]) == ("text-classification", 1, 100.0)
    client = service.openai()
    events = list(client.fine_tuning.jobs.list_events(topics.id, limit=50))
    assert {e.type for e in events} == {"message", "metrics"}
    assert events[-1].message == f"Created fine-tuning job: {topics.id}"
    content = client.files.content(topics.result_files[0]).text
    rows = list(csv.DictReader(io.StringIO(content)))
    assert list(rows[0])[:4] == ["step", "epoch", "train_loss", "learning_rate"]
    assert len(rows) == extra["progress"]["total_steps"]


def test_the_version_carries_metrics_recipe_and_parity(service: Service, topics: FineTuningJob) -> None:
    import httpx2

    headers = {"authorization": f"Bearer {service.key}"}
    version = httpx2.get(f"{service.url}/v1/models/topics/versions/1", headers=headers).json()
    assert version["fine_tuned_model"] == topics.fine_tuned_model
    assert 0 < version["metrics"]["test"]["accuracy"] <= 1
    assert version["parity"]["max_abs_logit_diff"] < 1e-3
    assert version["parity"]["label_agreement"] == 1.0
    assert version["datasets"]["train"]["sha256"]
    assert version["recipe"]["asked"]["seed"] == 1
    assert version["base_model_revision"] and version["code_version"]
    assert {"model.onnx", "tokenizer.json", "config.json", "model.safetensors"} <= set(version["sizes"])


def test_predictions_in_every_form(service: Service, topics: FineTuningJob) -> None:
    one = service.predict(model="topics", inputs="do you like pizza?").json()
    assert one["object"] == "prediction" and one["model"] == "topics:1" and one["usage"]["inputs"] == 1
    texts = [row["text"] for row in topic_rows()[:120]]
    many = service.predict(model=topics.fine_tuned_model, inputs=[*texts, texts[0]], parameters={"top_k": 2}).json()
    assert len(many["outputs"]) == 121
    assert many["outputs"][0]["label"] == many["outputs"][-1]["label"]
    assert many["outputs"][5]["scores"][0]["label"] == many["outputs"][5]["label"]
    everything = service.predict(model="topics:1", inputs=[texts[0]], parameters={"return_all_scores": True}).json()
    assert sum(s["score"] for s in everything["outputs"][0]["scores"]) == pytest.approx(1.0, abs=1e-3)


def test_batches_of_every_length_agree_with_single_calls(service: Service, topics: FineTuningJob) -> None:
    texts = ["hi", "what is " * 40, "tell me about the history of computers in three words", "ok", "a b c d e f g"]
    together = service.predict(model="topics", inputs=texts).json()["outputs"]
    alone = [service.predict(model="topics", inputs=[t]).json()["outputs"][0] for t in texts]
    for a, b in zip(together, alone, strict=True):
        assert a["label"] == b["label"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "topics", "inputs": []}, 400, "inputs has 0 entries; send 1 to 1,024"),
        ({"model": "topics", "inputs": ["a"] * 1025}, 400, "inputs has 1,025 entries"),
        ({"model": "topics", "inputs": ["x" * 1_000_000]}, 400, "1,000,000 characters; the limit is 100,000"),
        ({"model": "topics", "inputs": [3]}, 400, "inputs[0] must be a string, not int"),
        ({"model": "topics", "inputs": ["a", {"tokens": ["a"]}]}, 400, "inputs[1]"),
        ({"model": "topics", "inputs": ["a"], "parameters": {"top_k": 0}}, 400, "parameters.top_k"),
        ({"model": "topics:9", "inputs": ["a"]}, 404, "no model 'topics:9'"),
    ],
)
def test_bad_predictions_name_value_limit_and_remedy(
    service: Service, topics: FineTuningJob, body: dict[str, Any], status: int, words: str
) -> None:
    answer = service.predict(**body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_concurrent_callers_get_exactly_their_own_rows(service: Service, topics: FineTuningJob) -> None:
    texts = [row["text"] for row in topic_rows()[:64]]
    expected = service.predict(model="topics", inputs=texts).json()["outputs"]
    wrong: list[str] = []

    def ask(start: int) -> None:
        for i in range(start, 64, 8):
            answer = service.predict(model="topics", inputs=[texts[i]]).json()
            if answer["outputs"][0]["label"] != expected[i]["label"]:
                wrong.append(texts[i])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_token_classification_with_lora(service: Service) -> None:
    client = service.openai()
    job = client.fine_tuning.jobs.create(
        model="all-MiniLM-L6-v2",
        training_file=upload(client, SENTENCES),
        suffix="people",
        seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 6}}},
        extra_body={"task": "token-classification", "peft": {"type": "lora", "r": 8}},
    )
    job = wait_for(client, job.id)
    assert job.status == "succeeded", job.error
    text = "Yesterday Ada went to Paris."
    tokens = ["Ada", "went", "to", "Paris", "."] * 300
    by_text, by_tokens = service.predict(model="people", inputs=[text, {"tokens": tokens}]).json()["outputs"]
    for entity in by_text["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    assert len(by_tokens["tags"]) == len(tokens)
    assert set(by_tokens["tags"]) <= {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"}


def test_the_stock_client_in_strict_mode(service: Service, topics: FineTuningJob) -> None:
    client = service.openai(strict=True)
    rows = topic_rows()[:200]
    file = client.files.create(file=io.BytesIO("\n".join(map(json.dumps, rows)).encode()), purpose="fine-tune")
    assert client.files.retrieve(file.id).status == "processed"
    assert client.files.wait_for_processing(file.id).bytes == file.bytes
    assert file.id in {f.id for f in client.files.list(limit=2)}
    data = b'{"text": "a", "label": "x"}\n' * 10
    done = client.uploads.upload_file_chunked(
        file=data, filename="u.jsonl", bytes=len(data), mime_type="text/jsonl", purpose="fine-tune"
    )
    assert done.status == "completed" and done.file is not None
    assert client.files.content(done.file.id).read() == data
    job = client.fine_tuning.jobs.create(
        model="all-MiniLM-L6-v2",
        training_file=file.id,
        suffix="strict",
        metadata={"suite": "strict"},
        method=QUICK,  # type: ignore[arg-type]
    )
    assert client.fine_tuning.jobs.retrieve(job.id).id == job.id
    assert [j.id for j in client.fine_tuning.jobs.list(metadata={"suite": "strict"})] == [job.id]
    assert client.fine_tuning.jobs.cancel(job.id).id == job.id
    assert wait_for(client, job.id).status == "cancelled"
    assert list(client.fine_tuning.jobs.list_events(job.id, limit=1))
    with pytest.raises(BadRequestError, match="cannot be cancelled"):
        client.fine_tuning.jobs.cancel(job.id)
    assert topics.fine_tuned_model in {m.id for m in client.models.list()}
    assert client.models.retrieve(topics.fine_tuned_model or "").id == topics.fine_tuned_model
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id
    assert client.files.delete(file.id).deleted
