"""`/v1/embeddings` through the stock client; the export of a base model on first use."""

import math
import struct
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError
from sqlalchemy import delete, select, update

from app.contracts.catalogue import BASE_ENCODERS
from app.core.errors import Unavailable
from app.core.ids import new_id
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database
from app.registry.tables import JobRow, VersionRow
from app.services.exports import ExportService
from tests.integration.helpers import INTENTS, create_job, error, finish_all, upload_rows
from tests.integration.toy_service import ToyService, bare_base, toy_service
from tests.toys import build_toy_base
from workers.lifecycle import run_waiting

MODEL = "toy-encoder"
SIZE = 4
SOON = {"x-request-timeout-ms": "1"}


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, admin_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ToyService]:
    """`toy-encoder` answers already; `raw` and `broken` are folders that nobody has asked for."""
    home = tmp_path_factory.mktemp("embeddings")
    bare_base(home / "models" / MODEL)
    bare_base(home / "models" / "broken")
    build_toy_base(home / "models" / "raw")
    finish_all(database)
    with toy_service(settings, database, admin_key, home, models=home / "models") as found:
        found.add(BASE_ENCODERS, base_model=MODEL, task="sentence-embedding", labels="abcd"[:SIZE])
        yield found


def embed(service: ToyService, given: Any, **extra: Any) -> list[Any]:
    answer = service.client.post("/v1/embeddings", json={"model": MODEL, "input": given, **extra})
    assert answer.status_code == 200, answer.text
    return [entry["embedding"] for entry in answer.json()["data"]]


def word(k: int, share: float = 1.0) -> list[Any]:
    """The toy's vector of a text that has word `w<k>` for `share` of its tokens."""
    return [pytest.approx(10 * share) if i == k % SIZE else 0.0 for i in range(SIZE)]


@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_the_stock_client(service: ToyService, strict: bool) -> None:
    client = service.openai(strict=strict)
    found = client.embeddings.create(model=MODEL, input=["w1", "w2 w2"], encoding_format="float", user="u1")
    assert [(e.index, e.embedding) for e in found.data] == [(0, word(1, 1 / 3)), (1, word(2, 1 / 2))]
    assert (found.model, found.object) == (MODEL, "list")
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (7, 7)  # with [CLS] and [SEP]
    if not strict:  # its own default, base64, fails its own types
        default = client.embeddings.create(model=MODEL, input="w1")
        assert default.data[0].embedding == found.data[0].embedding


def test_base64_holds_the_same_numbers_as_float32(service: ToyService) -> None:
    (text,) = embed(service, "w1 w5 w3", encoding_format="base64")
    assert isinstance(text, str)
    assert list(struct.unpack(f"<{SIZE}f", b64decode(text))) == embed(service, "w1 w5 w3")[0]


def test_a_thousand_inputs_come_back_in_order(service: ToyService) -> None:
    assert embed(service, [f"w{i % 31}" for i in range(1024)]) == [word(i % 31, 1 / 3) for i in range(1024)]
    too_many = service.client.post("/v1/embeddings", json={"model": MODEL, "input": ["w1"] * 1025})
    assert error(too_many, 400)["param"] == "input"


def test_token_ids_stand_for_their_text(service: ToyService) -> None:
    one = [2, 4 + 1, 4 + 2, 3]  # [CLS] w1 w2 [SEP]
    assert embed(service, one) == embed(service, "w1 w2")
    assert embed(service, [one, [4 + 7]]) == [*embed(service, "w1 w2"), word(7)]


def test_fewer_dimensions_have_length_one_again(service: ToyService) -> None:
    (whole,), (cut,) = embed(service, "w0 w1 w2"), embed(service, "w0 w1 w2", dimensions=2)
    assert len(cut) == 2 and math.hypot(*cut) == pytest.approx(1)
    assert cut == pytest.approx([x / math.hypot(*whole[:2]) for x in whole[:2]])
    assert embed(service, "w0", dimensions=SIZE) == embed(service, "w0")
    with pytest.raises(BadRequestError) as caught:
        service.openai().embeddings.create(model=MODEL, input="w0", dimensions=SIZE + 1)
    assert caught.value.param == "dimensions"
    assert f"is {SIZE + 1}; {MODEL} has {SIZE}" in caught.value.message


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ([], "input", "1 to 1,024"),
        ([["w1"]], "input[0]", "token ids"),
        (["w1", 7], "input[1]", "must be a string"),
        ([7, "w1"], "input[0]", "token ids"),
        ([[4], []], "input[1]", "non-empty"),
        ([True], "input[0]", "token ids"),
        ([1 << 70], "input[0]", "token ids"),
        ([[4], [999]], "input[1]", "no token 999; this model has the ids 0 to 36"),
        ([4] * 17, "input[0]", "17 token ids; toy-encoder takes 16"),
        ("w" * 100_001, "input[0]", "100,001 characters"),
        ({"text": "w1"}, "input", "valid"),
        ([{"text": "w1"}], "input[0]", "must be a string"),
    ],
)
def test_what_cannot_be_embedded_is_named(service: ToyService, given: Any, param: str, words: str) -> None:
    found = error(service.client.post("/v1/embeddings", json={"model": MODEL, "input": given}), 400)
    assert found["param"] == param and words in found["message"]


def test_predict_gives_the_same_vectors(service: ToyService) -> None:
    body = {"model": MODEL, "inputs": ["w1", {"text": "w2"}], "parameters": {"dimensions": 3}}
    answer = service.client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == [{"embedding": [0.0, 1.0, 0.0]}, {"embedding": [0.0, 0.0, 1.0]}]
    assert (answer.json()["model"], answer.json()["task"]) == (MODEL, "sentence-embedding")
    ids = service.client.post("/predict", json={"model": MODEL, "inputs": [{"input_ids": [4]}]})
    assert error(ids, 400)["param"] == "inputs[0]"
    large = service.client.post("/predict", json={**body, "parameters": {"dimensions": 5}})
    assert error(large, 400)["param"] == "dimensions"


def test_a_classifier_has_no_vectors(service: ToyService) -> None:
    name = f"classes-{new_id('')[:8]}"
    service.add(name)
    found = error(service.client.post("/v1/embeddings", json={"model": name, "input": "w1"}), 400)
    assert found["code"] == "task_mismatch" and "all-MiniLM-L6-v2" in found["message"]


def test_encoders_cannot_be_trained_yet(service: ToyService) -> None:
    file_id = upload_rows(service.client, INTENTS)
    found = error(create_job(service.client, file_id, task="sentence-embedding"), 400)
    assert found["param"] == "task" and "text-classification, token-classification" in found["message"]


def test_a_trained_model_cannot_take_the_name_of_a_base_model(service: ToyService) -> None:
    file_id = upload_rows(service.client, INTENTS)
    found = error(create_job(service.client, file_id, suffix=MODEL.upper()), 400)
    assert found["param"] == "suffix" and "name of a base model" in found["message"]


def test_a_hub_id_is_not_fetched_for_whoever_may_predict(service: ToyService, database: Database) -> None:
    settings = service.context.settings.model_copy(update={"hub": True})
    headers = {"authorization": f"Bearer {service.key}"}
    with TestClient(create_app(settings), headers=headers) as client:
        found = error(client.post("/v1/embeddings", json={"model": "someone/encoder", "input": "w1"}), 400)
    assert found["code"] == "model_not_servable" and "MODELWRIGHT_MODELS" in found["message"]
    assert exports(database, "someone/encoder") == []


def exports(database: Database, base: str) -> list[JobRow]:
    with database.unit_of_work() as session:
        query = select(JobRow).where(JobRow.base_model == base, JobRow.kind == "export")
        return list(session.scalars(query.order_by(JobRow.created_at)))


def test_the_first_call_makes_one_export_whoever_asks(service: ToyService, database: Database) -> None:
    ask = {"model": "broken", "input": "w1"}

    def call(_: int) -> dict[str, Any]:
        return error(service.client.post("/v1/embeddings", json=ask, headers=SOON), 503)

    with ThreadPoolExecutor(6) as pool:
        assert {found["code"] for found in pool.map(call, range(12))} == {"model_preparing"}
    (job,) = exports(database, "broken")
    assert (job.task, job.training_file, job.state, job.key_id) == ("sentence-embedding", None, "queued", None)
    run_waiting(service.context, "export")
    answer = service.client.post("/v1/embeddings", json=ask, headers=SOON)
    found = error(answer, 400)
    assert found["code"] == "model_not_servable" and "has no model.safetensors" in found["message"]
    assert len(exports(database, "broken")) == 1
    with database.unit_of_work() as session:  # a minute later
        earlier = JobRow.finished_at - timedelta(minutes=2)
        session.execute(update(JobRow).where(JobRow.id == job.id).values(finished_at=earlier))
    call(0)
    assert [row.state for row in exports(database, "broken")] == ["failed", "queued"]
    finish_all(database)


def test_a_base_model_is_exported_while_the_caller_waits(service: ToyService, database: Database) -> None:
    """By a real child with torch; compared with torch in `tests/conformance/test_encoders.py`."""
    stop = Event()

    def trainer() -> None:
        while not stop.wait(0.1):
            run_waiting(service.context, "export")

    thread = Thread(target=trainer)
    thread.start()
    try:
        found = service.openai().embeddings.create(
            model="raw", input=["the dog", "the dog", "a red hammer"], extra_headers={"x-request-timeout-ms": "120000"}
        )
    finally:
        stop.set()
        thread.join()
    same, again, other = (e.embedding for e in found.data)
    assert len(same) == 32 and math.hypot(*same) == pytest.approx(1, abs=1e-6)
    assert same == pytest.approx(again, abs=1e-6) and same != pytest.approx(other, abs=1e-2)
    (job,) = exports(database, "raw")
    assert job.state == "succeeded"
    with database.unit_of_work() as session:
        (version,) = session.scalars(select(VersionRow).where(VersionRow.base_model == "raw"))
        assert (version.number, version.label, version.job_id) == (None, "raw", job.id)
        assert set(version.sizes) == {
            "model.onnx",
            "fused.onnx",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        version.deleted_at = version.created_at
    with pytest.raises(Unavailable):  # and made anew
        ExportService(database, service.context.settings).of_base("raw")
    assert [row.state for row in exports(database, "raw")] == ["succeeded", "queued"]
    listed = {m["id"] for m in service.client.get("/v1/models").json()["data"]}
    assert "raw" in listed and not any(name.startswith("base:") for name in listed)


@pytest.fixture(autouse=True, scope="module")
def _no_job_is_left(database: Database) -> Iterator[None]:
    yield
    finish_all(database)
    with database.unit_of_work() as session:  # other tests count and claim jobs
        session.execute(delete(VersionRow).where(VersionRow.base_model.in_([MODEL, "raw"])))
