"""Quotas of a key: what is refused and with which words, exactly at the limit however many call at once."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app.auth.keys import KeyService, Quotas
from app.cli.keys import cli
from app.core.errors import InvalidRequest, NotFound
from app.core.settings import Settings, get_settings
from app.main import create_app
from app.registry.keys import KeyRepository
from app.registry.session import Database
from tests.integration.helpers import INTENTS, error, jsonl
from tests.integration.test_idempotency import JOBS, Sender, replayed

DATA = jsonl(INTENTS)


@pytest.fixture
def with_quotas(anonymous: TestClient, keys: KeyService) -> Callable[..., Sender]:
    return lambda **quotas: Sender(anonymous, keys.create("quotas", ["train"], quotas=Quotas(**quotas)))


@pytest.fixture
def file_id(client: TestClient) -> str:
    """A file of another key: jobs may use it, and it counts there."""
    found: str = client.post("/v1/files", files={"file": DATA}, data={"purpose": "fine-tune"}).json()["id"]
    return found


@pytest.fixture
def stored(settings: Settings) -> Callable[[], list[Path]]:
    return lambda: sorted(p for p in settings.store_path.rglob("*") if p.is_file())


class TestJobs:
    def test_the_limit_counts_unfinished_jobs_of_the_key(
        self, with_quotas: Callable[..., Sender], file_id: str
    ) -> None:
        sender, other = with_quotas(max_queued_jobs=2), with_quotas(max_queued_jobs=2)
        first = sender.job(file_id, key="first")
        sender.job(file_id)
        refused = sender.job(file_id)
        found = error(refused, 429)
        assert (found["code"], found["type"]) == ("quota_exceeded", "rate_limit_error")
        assert "has 2 unfinished jobs; its limit is 2" in found["message"]
        assert f"modelwright keys update {sender.key_id} --max-queued-jobs" in found["message"]
        assert (refused.headers["retry-after"], refused.headers.get("x-should-retry")) == ("60", None)
        assert other.job(file_id).status_code == 200
        replayed(first, sender.job(file_id, key="first"))  # makes nothing, so nothing is refused
        sender.post(f"{JOBS}/{first.json()['id']}/cancel")
        assert sender.job(file_id).status_code == 200

    def test_it_is_exact_when_all_come_at_once(self, with_quotas: Callable[..., Sender], file_id: str) -> None:
        sender = with_quotas(max_queued_jobs=5)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: sender.job(file_id), range(24)))
        assert Counter(a.status_code for a in answers) == {200: 5, 429: 19}

    def test_a_changed_quota_counts_from_the_next_call(
        self, with_quotas: Callable[..., Sender], file_id: str, keys: KeyService
    ) -> None:
        sender = with_quotas(max_queued_jobs=1)
        sender.job(file_id)
        error(sender.job(file_id), 429)
        keys.update(sender.key_id, Quotas(max_queued_jobs=2))
        assert sender.job(file_id).status_code == 200
        error(sender.job(file_id), 429)
        keys.update(sender.key_id, Quotas(), reset=True)
        assert sender.job(file_id).status_code == 200


@pytest.fixture
def strict(settings: Settings) -> Iterator[TestClient]:
    """A gateway whose settings leave room for one job and one file."""
    limits = {"max_queued_jobs": 1, "max_stored_bytes": len(DATA)}
    with TestClient(create_app(settings.model_copy(update=limits)), raise_server_exceptions=False) as client:
        yield client


def test_a_key_without_quotas_has_those_of_the_settings(strict: TestClient, keys: KeyService) -> None:
    sender = Sender(strict, keys.create("settings", ["train"]))
    file_id = sender.file().json()["id"]
    assert error(sender.file(), 429)["code"] == "quota_exceeded"
    assert sender.job(file_id).status_code == 200
    assert error(sender.job(file_id), 429)["code"] == "quota_exceeded"
    generous = Sender(strict, keys.create("own", ["train"], quotas=Quotas(max_queued_jobs=2)))
    assert [generous.job(file_id).status_code for _ in range(3)] == [200, 200, 429]


class TestBytes:
    def test_files_and_pending_uploads_count_until_they_go(
        self, with_quotas: Callable[..., Sender], stored: Callable[[], list[Path]]
    ) -> None:
        size = len(DATA)
        sender = with_quotas(max_stored_bytes=2 * size)
        auth = {"authorization": f"Bearer {sender.key}"}
        file_id = sender.file().json()["id"]
        body = {"bytes": size, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        url = f"/v1/uploads/{sender.post('/v1/uploads', json=body).json()['id']}"
        before = stored()
        refused = sender.file()
        found = error(refused, 429)
        assert found["code"] == "quota_exceeded"
        assert f"stores {2 * size:,} bytes" in found["message"]
        assert f"its limit is {2 * size:,}" in found["message"]
        assert (refused.headers["x-should-retry"], refused.headers.get("retry-after")) == ("false", None)
        assert stored() == before
        error(sender.post("/v1/uploads", json={**body, "bytes": 1}), 429)
        # Completed, an upload is a file of the same size: it is not counted twice.
        part = sender.post(f"{url}/parts", files={"data": ("p", DATA)}).json()["id"]
        assert sender.post(f"{url}/complete", json={"part_ids": [part]}).status_code == 200
        error(sender.post("/v1/uploads", json={**body, "bytes": 1}), 429)
        assert sender.client.delete(f"/v1/files/{file_id}", headers=auth).status_code == 200
        other = sender.post("/v1/uploads", json=body).json()["id"]
        error(sender.file(), 429)
        sender.post(f"/v1/uploads/{other}/cancel")
        assert sender.file().status_code == 200

    def test_it_is_exact_when_all_come_at_once(self, with_quotas: Callable[..., Sender]) -> None:
        sender = with_quotas(max_stored_bytes=3 * len(DATA))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: sender.file(), range(16)))
        assert Counter(a.status_code for a in answers) == {200: 3, 429: 13}


class TestSetting:
    def test_bounds_and_unknown_keys(self, keys: KeyService) -> None:
        with pytest.raises(InvalidRequest, match="max_trainings is 0; give 1 to 2,147,483,647"):
            keys.create("none", ["train"], quotas=Quotas(max_trainings=0))
        with pytest.raises(InvalidRequest, match="max_queued_jobs is 2,147,483,648"):
            keys.create("too many", ["train"], quotas=Quotas(max_queued_jobs=2**31))
        with pytest.raises(NotFound, match="no key 'nobody'"):
            keys.update("nobody", Quotas(max_trainings=1))

    def test_the_commands(self, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        assert settings.database_url is not None
        assert settings.redis_url is not None
        monkeypatch.setenv("MODELWRIGHT_DATABASE_URL", settings.database_url)
        monkeypatch.setenv("MODELWRIGHT_REDIS_URL", settings.redis_url)
        monkeypatch.setenv("MODELWRIGHT_HOME", str(settings.home))
        monkeypatch.setenv("COLUMNS", "200")
        get_settings.cache_clear()

        def run(*words: str) -> str:
            result = CliRunner().invoke(cli, list(words), catch_exceptions=False)
            assert result.exit_code == 0, result.output
            return result.output

        def quotas() -> tuple[int | None, ...]:
            with database.unit_of_work() as session:
                row = KeyRepository(session).get(key_id)
            assert row is not None
            return row.max_queued_jobs, row.max_stored_bytes, row.max_trainings

        key_id = run("create", "--max-queued-jobs", "5", "--max-stored-bytes", "6000000000").split("_")[1]
        assert quotas() == (5, 6_000_000_000, None)
        run("update", key_id, "--max-trainings", "2")
        assert quotas() == (5, 6_000_000_000, 2)
        line = next(line for line in run("list").splitlines() if key_id in line)
        assert [cell.strip() for cell in line.strip("│").split("│")][-3:] == ["5", "6,000,000,000", "2"]
        run("update", key_id, "--reset", "--max-queued-jobs", "7")
        assert quotas() == (7, None, None)
        get_settings.cache_clear()
