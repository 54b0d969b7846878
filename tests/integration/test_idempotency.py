"""Creating calls sent again: the first answer, byte for byte, and never a second object."""

import io
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from openai import OpenAI
from sqlalchemy import func, select, text, update

from app.auth.keys import KeyService
from app.registry.creations import CreationRepository
from app.registry.session import Database
from app.registry.tables import CreationRow, FileRow, JobRow, UploadPartRow
from tests.integration.helpers import INTENTS, error, jsonl

JOBS = "/v1/fine_tuning/jobs"
DATA = jsonl(INTENTS)


class Sender:
    """Calls under an API key of its own, so that counts are this test's."""

    def __init__(self, client: TestClient, key: str) -> None:
        self.client, self.key, self.key_id = client, key, key.split("_")[1]

    def post(self, path: str, key: str | None = None, retry: str | None = None, **content: Any) -> Response:
        headers = {"authorization": f"Bearer {self.key}"}
        headers |= {"idempotency-key": key} if key is not None else {}
        headers |= {"x-stainless-retry-count": retry} if retry is not None else {}
        return self.client.post(path, headers=headers, **content)

    def file(self, data: bytes = DATA, name: str = "a.jsonl", **headers: Any) -> Response:
        files = {"file": (name, data)}
        return self.post("/v1/files", files=files, data={"purpose": "fine-tune"}, **headers)

    def job(self, file_id: str, suffix: str = "same", **headers: Any) -> Response:
        body = {"model": "all-MiniLM-L6-v2", "training_file": file_id, "suffix": suffix}
        return self.post(JOBS, json=body, **headers)


@pytest.fixture
def sender(anonymous: TestClient, keys: KeyService) -> Sender:
    return Sender(anonymous, keys.create("idempotency", ["train"]))


@pytest.fixture
def file_id(sender: Sender) -> str:
    found: str = sender.file().json()["id"]
    return found


@pytest.fixture
def count(database: Database, sender: Sender) -> Callable[[type[JobRow | FileRow]], int]:
    def of(row: type[JobRow | FileRow]) -> int:
        with database.unit_of_work() as session:
            return session.scalar(select(func.count()).where(row.key_id == sender.key_id)) or 0

    return of


@pytest.fixture
def stored(anonymous: TestClient) -> Callable[[], list[Path]]:
    root = anonymous.app.state.services.settings.store_path  # type: ignore[attr-defined]
    return lambda: sorted(p for p in root.rglob("*") if p.is_file())


def age(database: Database, by: timedelta) -> None:
    with database.unit_of_work() as session:
        session.execute(update(CreationRow).values(created_at=CreationRow.created_at - by))


def replayed(first: Response, again: Response) -> None:
    assert (first.status_code, again.status_code) == (200, 200), again.text
    assert again.content == first.content
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert again.headers["content-type"] == first.headers["content-type"] == "application/json"


class TestKeys:
    def test_the_first_answer_again_whatever_happened_since(self, sender: Sender, file_id: str) -> None:
        first = sender.job(file_id, key="order 17")
        sender.post(f"{JOBS}/{first.json()['id']}/cancel")
        sender.client.delete(f"/v1/files/{file_id}", headers={"authorization": f"Bearer {sender.key}"})
        replayed(first, sender.job(file_id, key="order 17"))
        error(sender.job(file_id, key="order 18"), 400)  # the file is gone

    def test_another_body_or_path_under_the_same_key_is_refused(self, sender: Sender, file_id: str) -> None:
        sender.job(file_id, key="k")
        found = error(sender.job(file_id, suffix="other", key="k"), 422)
        assert (found["code"], found["param"]) == ("idempotency_key_reused", "idempotency-key")
        assert "48 hours" in found["message"]
        assert error(sender.file(key="k"), 422)["code"] == "idempotency_key_reused"

    def test_keys_of_two_callers_are_two_keys(self, sender: Sender, file_id: str, keys: KeyService) -> None:
        other = Sender(sender.client, keys.create("other", ["train"]))
        ids = {s.job(file_id, key="k").json()["id"] for s in (sender, other, sender, other)}
        assert len(ids) == 2

    def test_after_48_hours_a_key_is_new(self, sender: Sender, file_id: str, database: Database) -> None:
        first = sender.job(file_id, key="k").json()["id"]
        age(database, timedelta(hours=47, minutes=59))
        assert sender.job(file_id, key="k").json()["id"] == first
        age(database, timedelta(minutes=2))
        second = sender.job(file_id, suffix="changed", key="k")
        assert second.json()["id"] != first
        replayed(second, sender.job(file_id, suffix="changed", key="k"))

    def test_a_refused_call_is_not_remembered(self, sender: Sender, file_id: str) -> None:
        error(sender.job("file-none", key="k"), 400)
        error(sender.file(b"{broken", key="f"), 400)
        assert sender.job(file_id, key="k").status_code == 200
        assert sender.file(key="f").status_code == 200

    @pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", "tab\there"])
    def test_malformed_keys_are_refused(self, sender: Sender, file_id: str, key: str) -> None:
        raw: Any = key.encode("latin-1")
        assert error(sender.job(file_id, key=raw), 400)["param"] == "idempotency-key"
        assert error(sender.file(key=raw), 400)["param"] == "idempotency-key"

    def test_the_longest_key_is_taken(self, sender: Sender, file_id: str) -> None:
        replayed(sender.job(file_id, key="~" * 255), sender.job(file_id, key="~" * 255))

    def test_50_keys_8_at_once_make_one_job_each(
        self, sender: Sender, file_id: str, count: Callable[[type[JobRow]], int]
    ) -> None:
        sent = [f"key {n}" for n in range(50) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(zip(sent, pool.map(lambda key: sender.job(file_id, key=key), sent), strict=True))
        assert count(JobRow) == 50
        assert Counter(a.status_code for _, a in answers).keys() <= {200, 409}
        for key in set(sent):
            assert len({a.content for k, a in answers if k == key and a.status_code == 200}) == 1
        for _, answer in answers:
            if answer.status_code == 409:
                in_progress(answer)


def in_progress(answer: Response) -> None:
    assert error(answer, 409)["code"] == "idempotency_in_progress"
    assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1")


@pytest.fixture
def halted(database: Database, sender: Sender) -> Iterator[Callable[[], None]]:
    """Callers of this key stop just before their insert until the function is called."""
    with database.engine.connect() as connection:
        name = {"name": f"quota {sender.key_id}"}
        connection.execute(text("SELECT pg_advisory_lock(hashtextextended(:name, 0))"), name)
        yield lambda: connection.execute(text("SELECT pg_advisory_unlock_all()")).close()
        connection.execute(text("SELECT pg_advisory_unlock_all()"))


def waiting(database: Database, callers: int) -> None:
    """Return once so many sessions wait for an advisory lock."""
    query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    for _ in range(2000):
        with database.unit_of_work() as session:
            if session.scalar(query) == callers:
                return
    raise AssertionError(f"{callers} callers never waited")


class TestInProgress:
    @pytest.mark.parametrize("headers", [{"key": "k"}, {"retry": "1"}])
    def test_a_call_like_one_that_has_not_ended_is_told_to_wait(
        self, sender: Sender, file_id: str, halted: Callable[[], None], database: Database, headers: dict[str, str]
    ) -> None:
        first_headers = headers if "key" in headers else {}
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(sender.job, file_id, **first_headers)
            waiting(database, 1)
            in_progress(sender.job(file_id, **headers))
            halted()
            replayed(first.result(), sender.job(file_id, **headers))

    def test_equal_calls_that_say_nothing_do_not_meet(
        self, sender: Sender, file_id: str, halted: Callable[[], None], database: Database
    ) -> None:
        with ThreadPoolExecutor(2) as pool:
            twins = [pool.submit(sender.job, file_id) for _ in range(2)]
            waiting(database, 2)
            halted()
            assert len({t.result().json()["id"] for t in twins}) == 2


class TestRetries:
    def test_a_retry_gets_what_the_call_made(self, sender: Sender, file_id: str) -> None:
        first = sender.job(file_id, retry="0")
        replayed(first, sender.job(file_id, retry="1"))
        second = sender.job(file_id)  # asked for again on purpose
        assert second.json()["id"] != first.json()["id"]
        replayed(second, sender.job(file_id, retry="2"))
        assert sender.job(file_id, suffix="other", retry="1").json()["suffix"] == "other"

    def test_a_retry_of_a_call_that_made_nothing_makes_it(self, sender: Sender, file_id: str) -> None:
        first = sender.job(file_id, retry="1")
        replayed(first, sender.job(file_id, retry="2"))

    @pytest.mark.parametrize("retry", ["", "0", "00", "-1", "1.5", "one", "\u00b2"])
    def test_a_count_that_is_no_number_above_0_is_no_retry(self, sender: Sender, file_id: str, retry: str) -> None:
        raw: Any = retry.encode("latin-1")
        assert sender.job(file_id, retry=raw).json()["id"] != sender.job(file_id, retry=raw).json()["id"]

    def test_only_creations_of_the_last_10_minutes_count(
        self, sender: Sender, file_id: str, database: Database
    ) -> None:
        first = sender.job(file_id)
        age(database, timedelta(minutes=9))
        replayed(first, sender.job(file_id, retry="1"))
        age(database, timedelta(minutes=2))
        assert sender.job(file_id, retry="1").json()["id"] != first.json()["id"]

    def test_a_keyed_call_is_no_first_try_of_one_without_a_key(self, sender: Sender, file_id: str) -> None:
        keyed = sender.job(file_id, key="k").json()["id"]
        assert sender.job(file_id, retry="1").json()["id"] != keyed

    def test_retries_of_another_caller_are_its_own(self, sender: Sender, file_id: str, keys: KeyService) -> None:
        other = Sender(sender.client, keys.create("other", ["train"]))
        assert sender.job(file_id).json()["id"] != other.job(file_id, retry="1").json()["id"]


class DropsTheFirstReply(httpx2.BaseTransport):
    """The gateway answers, and the connection breaks before the client reads it: once for each path."""

    def __init__(self, client: TestClient) -> None:
        self.inner, self.dropped = client._transport, set[str]()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self.inner.handle_request(request)
        if request.url.path not in self.dropped:
            self.dropped.add(request.url.path)
            assert answer.status_code == 200
            raise httpx2.RemoteProtocolError("dropped", request=request)
        return answer


def test_the_stock_client_makes_one_of_each(sender: Sender, count: Callable[[type[JobRow | FileRow]], int]) -> None:
    transport = DropsTheFirstReply(sender.client)
    with httpx2.Client(transport=transport) as http:
        client = OpenAI(base_url="http://testserver/v1", api_key=sender.key, http_client=http)
        file = client.files.create(file=io.BytesIO(DATA), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="all-MiniLM-L6-v2", training_file=file.id, suffix="dropped")
    assert transport.dropped == {"/v1/files", JOBS}
    assert job.status == "queued"
    assert (count(FileRow), count(JobRow)) == (1, 1)


class TestFiles:
    @pytest.mark.parametrize("headers", [{"key": "k"}, {"retry": "1"}])
    def test_an_upload_sent_again_is_stored_once(
        self, sender: Sender, stored: Callable[[], list[Path]], headers: Any
    ) -> None:
        first = sender.file(**headers)
        before = stored()
        replayed(first, sender.file(**headers))  # the boundary differs: httpx draws a new one
        assert stored() == before
        other = DATA + b'\n{"text": "one more", "label": "pay"}'
        if "key" in headers:
            assert error(sender.file(other, **headers), 422)["code"] == "idempotency_key_reused"
            assert error(sender.file(name="b.jsonl", **headers), 422)["code"] == "idempotency_key_reused"
            assert stored() == before
        else:
            assert sender.file(other, **headers).json()["id"] != first.json()["id"]

    def test_two_on_purpose_are_two(self, sender: Sender) -> None:
        assert sender.file().json()["id"] != sender.file().json()["id"]

    @pytest.mark.parametrize("headers", [{"key": "k"}, {"retry": "1"}])
    def test_every_step_of_an_upload_in_parts_may_be_repeated(
        self, sender: Sender, stored: Callable[[], list[Path]], database: Database, headers: dict[str, str]
    ) -> None:
        def twice(path: str, **content: Any) -> Any:
            again = {"key": f"{headers['key']} {path}"} if "key" in headers else headers
            first = sender.post(path, **content, **({} if "retry" in headers else again))
            replayed(first, sender.post(path, **content, **again))
            return first.json()

        name = f"{secrets.token_hex(4)}.jsonl"
        body = {"bytes": len(DATA), "filename": name, "mime_type": "text/jsonl", "purpose": "fine-tune"}
        upload = twice("/v1/uploads", json=body)
        url = f"/v1/uploads/{upload['id']}"
        # The whole file in one part: when it comes again, the upload has no room left.
        part = twice(f"{url}/parts", files={"data": ("p", DATA)})
        with database.unit_of_work() as session:
            assert session.scalar(select(func.count()).where(UploadPartRow.upload_id == upload["id"])) == 1
        done = twice(f"{url}/complete", json={"part_ids": [part["id"]]})
        assert done["status"] == "completed"
        assert [p.name for p in stored() if upload["id"] in str(p) or done["file"]["id"] == p.name] == [
            done["file"]["id"]
        ]


def test_what_can_match_no_more_is_swept(sender: Sender, file_id: str, database: Database) -> None:
    sender.job(file_id, key="k")
    sender.job(file_id)

    def left() -> set[str | None]:
        with database.unit_of_work() as session:
            CreationRepository(session).delete_old()
            rows = session.scalars(select(CreationRow).where(CreationRow.key_id == sender.key_id))
            return {row.idempotency_key for row in rows}

    assert left() == {"k", None}
    age(database, timedelta(minutes=11))
    assert left() == {"k"}
    age(database, timedelta(hours=48))
    assert left() == set()
