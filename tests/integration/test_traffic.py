"""Versions behind aliases: history and rollback, shares, shadows, and swaps under load over a real worker."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import MetaData, Table, create_engine, text

from app.api.deps import Services, servable
from app.auth.keys import KeyService
from app.contracts.queues import WORKERS
from app.core.ids import new_id
from app.core.settings import Settings
from app.main import create_app
from app.registry.migrate import upgrade
from app.registry.session import Database, sqlalchemy_url
from tests import toy_artifact
from tests.integration.helpers import error
from tests.integration.test_models_api import publish
from workers.inference.consumer import Consumer


@pytest.fixture
def name(database: Database) -> str:
    """A model with four versions that no worker knows."""
    found = f"Model-{new_id('')[:8]}"
    for _ in range(4):
        publish(database, found)
    return found


# --- history and rollback ---


def versions(client: TestClient, url: str) -> list[tuple[str, int | None]]:
    """The history, newest first."""
    return [(change["action"], change["version"]) for change in client.get(f"{url}/history").json()["data"]]


def test_every_change_is_written_down_with_its_key(client: TestClient, name: str, keys: KeyService) -> None:
    url = f"/v1/models/{name}/aliases/production"
    shared = {"weights": {"1": 0.25, "2": 0.75}, "shadow": 3}
    other = keys.create("mover", ["train"])
    client.put(url, json={"version": 1})
    moved = client.put(url, json=shared, headers={"authorization": f"Bearer {other}"}).json()
    assert moved | {"updated_at": 0} == {
        "object": "model.alias",
        "alias": "production",
        "model": name,
        "version": 2,
        "weights": {"1": 0.25, "2": 0.75},
        "shadow": 3,
        "updated_at": 0,
    }
    assert client.get(f"/v1/models/{name}/aliases").json()["data"] == [moved]
    client.delete(url)
    page = client.get(f"{url}/history", params={"limit": 2}).json()
    assert page["has_more"]
    gone, change = page["data"]
    assert (gone["action"], gone["version"], gone["weights"], gone["shadow"]) == ("delete", None, None, None)
    assert (change["action"], change["weights"], change["shadow"]) == ("set", moved["weights"], 3)
    assert change["key_id"] == other[3:19] != gone["key_id"]
    (first,) = client.get(f"{url}/history", params={"after": page["last_id"]}).json()["data"]
    assert (first["version"], first["weights"], first["shadow"]) == (1, None, None)
    for unknown in ("999999999", "x", "9" * 30):
        error(client.get(f"{url}/history", params={"after": unknown}), 400)
    error(client.get(f"/v1/models/{name}/aliases/never/history"), 404)


def test_each_rollback_undoes_one_more_change(client: TestClient, name: str) -> None:
    url = f"/v1/models/{name}/aliases/production"
    error(client.post(f"{url}/rollback"), 404)
    canary = {"weights": {"1": 0.9, "2": 0.1}, "shadow": 3}
    for body in ({"version": 1}, canary, {"version": 2}, {"version": 2}, {"version": 3}):
        assert client.put(url, json=body).status_code == 200
    assert client.post(f"{url}/rollback").json()["version"] == 2
    assert client.get(f"/v1/models/{name}").json()["version"] == 2
    back = client.post(f"{url}/rollback").json()
    assert (back["version"], back["weights"], back["shadow"]) == (1, canary["weights"], 3)
    assert client.post(f"{url}/rollback").json()["weights"] is None
    assert error(client.post(f"{url}/rollback"), 400)["code"] == "nothing_to_roll_back"
    expected = [("rollback", 1), ("rollback", 1), ("rollback", 2), ("set", 3), ("set", 2), ("set", 1), ("set", 1)]
    assert versions(client, url) == expected


def test_a_rollback_brings_a_deleted_alias_back(client: TestClient, name: str) -> None:
    url = f"/v1/models/{name}/aliases/staging"
    client.put(url, json={"version": 2})
    client.delete(url)
    error(client.get(f"/v1/models/{name}@staging"), 404)
    assert client.post(f"{url}/rollback").json()["version"] == 2
    assert client.get(f"/v1/models/{name}@staging").json()["version"] == 2


def test_a_rollback_sent_again_is_one_rollback(client: TestClient, name: str) -> None:
    url = f"/v1/models/{name}/aliases/production"
    for number in (1, 2, 3):
        client.put(url, json={"version": number})
    keyed = {"Idempotency-Key": new_id("")}
    first, again = (client.post(f"{url}/rollback", headers=keyed) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert client.get(f"/v1/models/{name}").json()["version"] == 2


def test_a_rollback_to_a_deleted_version_is_refused(client: TestClient, name: str) -> None:
    url = f"/v1/models/{name}/aliases/production"
    client.put(url, json={"version": 1, "shadow": 2})
    client.put(url, json={"version": 3})
    assert client.delete(f"/v1/models/{name}:2").status_code == 200
    refused = error(client.post(f"{url}/rollback"), 400)
    assert refused["code"] == "version_deleted"
    assert f"{name}:2" in refused["message"]
    assert versions(client, url) == [("set", 3), ("set", 1)]


def test_a_version_with_a_share_or_as_shadow_cannot_be_deleted(client: TestClient, name: str) -> None:
    url = f"/v1/models/{name}/aliases/canary"
    client.put(url, json={"weights": {"1": 0.9, "2": 0.1, "4": 0.0}, "shadow": 3})
    for number in (1, 2, 3, 4):
        refused = error(client.delete(f"/v1/models/{name}:{number}"), 400)
        assert refused["code"] == "version_aliased"
    client.put(url, json={"version": 1})
    for number in (2, 3, 4):
        assert client.delete(f"/v1/models/{name}:{number}").status_code == 200
    for body in ({"version": 2}, {"weights": {"1": 0.5, "3": 0.5}}, {"version": 1, "shadow": 4}):
        assert error(client.put(url, json=body), 404)["code"] == "model_not_found"
    assert error(client.put(url, json={"weights": {"1": 0.9}}), 400)["message"] == (
        "the weights add up to 0.9; they must add up to 1"
    )


def test_an_alias_from_before_the_history_is_its_first_entry(database_url: str) -> None:
    admin = create_engine(sqlalchemy_url(database_url), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE before_history"))
    url = admin.url.set(database="before_history", drivername="postgresql").render_as_string(hide_password=False)
    admin.dispose()
    upgrade(url, "0002")
    engine = create_engine(sqlalchemy_url(url))

    def insert(table: str, **values: str) -> None:
        """A row of the schema as it was, the columns that must have a value filled with any."""
        found = Table(table, MetaData(), autoload_with=engine)
        needed = (c for c in found.columns if not c.nullable and c.server_default is None and c.name not in values)
        filled = {c.name: {"VARCHAR": "x", "JSONB": {}}.get(str(c.type).split("(")[0], 1) for c in needed}
        with engine.begin() as connection:
            connection.execute(found.insert().values(**filled, **values))

    insert("models", id="m")
    insert("files", id="f")
    insert("jobs", id="j", training_file="f")
    insert("versions", id="v", model_id="m", job_id="j")
    insert("aliases", model_id="m", alias="production", version_id="v")
    upgrade(url)
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT alias, action, version_id, key_id FROM alias_changes"))
    engine.dispose()
    assert tuple(row) == ("production", "set", "v", None)


# --- requests ---


class Toys:
    """Versions whose answers can be computed by hand, each with labels of its own."""

    def __init__(self, root: Path, database: Database) -> None:
        self.name = f"Toy-{new_id('')[:8]}"
        self._root, self._database = root, database
        self._digests: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        """Version's name -> the letter of each class."""

    def publish(self, labels: str, *, broken: bool = False) -> None:
        row = publish(self._database, self.name)
        if not broken:
            self._digests[row.id] = toy_artifact.build(self._root / row.id, labels=labels)
        self.labels[row.label] = labels

    def locate(self, version_id: str) -> tuple[Path, str]:
        return self._root / version_id, self._digests[version_id]


@dataclass
class Service:
    client: httpx2.AsyncClient
    services: Services
    toys: Toys

    async def point(self, **body: Any) -> None:
        answer = await self.client.put(f"/v1/models/{self.toys.name}/aliases/production", json=body)
        assert answer.status_code == 200, answer.text

    async def predict(self, words: list[int], **headers: str) -> str:
        """The name of the version that answered, after checking that every output is its own."""
        body = {"model": self.toys.name, "inputs": [f"w{k}" for k in words]}
        answer = await self.client.post("/predict", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        version: str = answer.json()["model"]
        labels = self.toys.labels[version]
        assert [output["label"] for output in answer.json()["outputs"]] == [labels[k % len(labels)] for k in words]
        return version

    async def counted(self, metric: str) -> Counter[str]:
        """The samples of a metric about this model: their labels, without its name, -> value."""
        page = (await self.client.get("/metrics")).text
        found = re.findall(rf"^modelwright_{metric}{{(.*{self.toys.name}.*)}} (.*)$", page, re.MULTILINE)
        return Counter({labels.replace(f"{self.toys.name}:", ""): int(float(value)) for labels, value in found})


@pytest.fixture
async def service(settings: Settings, database: Database, admin_key: str, tmp_path: Path) -> AsyncIterator[Service]:
    toys = Toys(tmp_path, database)
    with redis.Redis.from_url(settings.redis_url or "") as valkey:
        for key in [*valkey.scan_iter("modelwright:predict:*"), *valkey.scan_iter(f"{WORKERS}:inference:*")]:
            valkey.delete(key)
    async with worker(settings, toys), gateway(settings, admin_key) as (client, services):
        yield Service(client, services, toys)


@asynccontextmanager
async def worker(settings: Settings, toys: Toys) -> AsyncIterator[None]:
    consumer = Consumer(settings.redis_url or "", settings, toys.locate)
    await asyncio.to_thread(consumer.start)
    try:
        yield
    finally:
        await asyncio.to_thread(consumer.stop)


@asynccontextmanager
async def gateway(settings: Settings, key: str) -> AsyncIterator[tuple[httpx2.AsyncClient, Services]]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app),
            base_url="http://gateway",
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        ) as client,
    ):
        yield client, app.state.services


async def test_fifty_swaps_under_load_without_an_error_or_a_mixed_answer(service: Service) -> None:
    service.toys.publish("abc")
    service.toys.publish("vwxyz")
    await service.point(version=1)
    seen: Counter[str] = Counter()
    swapping = True

    async def caller(number: int) -> None:
        calls = 0
        while swapping:
            calls += 1
            # Over 64 inputs a call is cut into several requests.
            seen[await service.predict([(number + k) % 32 for k in range(70 if calls % 5 == 0 else 3)])] += 1

    callers = [asyncio.create_task(caller(number)) for number in range(8)]
    for swap in range(50):
        number = 2 - swap % 2
        await service.point(version=number)
        # This gateway follows at once, others within two seconds.
        assert await service.predict([swap % 32]) == f"{service.toys.name}:{number}"
    swapping = False
    await asyncio.gather(*callers)
    assert min(seen.values()) >= 20
    assert len(seen) == 2


async def test_a_canary_gets_its_share_and_sticky_keys_stay(service: Service, settings: Settings) -> None:
    service.toys.publish("abc")
    service.toys.publish("xyz")
    await service.point(weights={"1": 0.9, "2": 0.1})
    canary = f"{service.toys.name}:2"
    chosen = [(await servable(service.services, service.toys.name, None)).name for _ in range(2000)]
    assert 160 <= chosen.count(canary) <= 240
    first = {f"user-{n}": await service.predict([n % 32], **{"x-sticky-key": f"user-{n}"}) for n in range(60)}
    assert set(first.values()) == set(service.toys.labels)
    async with gateway(settings, "unused") as (_, other):  # another gateway chooses alike
        again = {user: (await servable(other, service.toys.name, None, user)).name for user in first}
    assert again == first
    inputs = await service.counted("predicted_inputs_total")
    assert inputs == Counter({f'model="{v.split(":")[1]}"': count for v, count in Counter(first.values()).items()})
    calls = await service.counted("version_calls_total")
    assert sum(calls.values()) == 60
    assert (await service.counted("version_seconds_count")).total() == 60


async def test_shadow_answers_are_compared_and_never_returned(service: Service) -> None:
    service.toys.publish("abc")
    service.toys.publish("abz")
    service.toys.publish("abc", broken=True)
    answering = f"{service.toys.name}:1"
    await service.point(version=1, shadow=2)
    assert {await service.predict([k, k]) for k in range(30)} == {answering}
    await service.point(version=1, shadow=3)
    assert await service.predict([0, 1, 2]) == answering
    expected = {
        'agree="yes",model="1",shadow="2"': 40,
        'agree="no",model="1",shadow="2"': 20,
        'agree="error",model="1",shadow="3"': 3,
    }
    async with asyncio.timeout(20):
        while await service.counted("shadow_inputs_total") != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert set(await service.counted("predicted_inputs_total")) == {'model="1"'}


async def test_rollbacks_at_once_each_go_one_step(service: Service) -> None:
    for number in range(1, 11):
        service.toys.publish("abc")
        await service.point(version=number)
    url = f"/v1/models/{service.toys.name}/aliases/production/rollback"
    answers = await asyncio.gather(*(service.client.post(url) for _ in range(8)))
    assert sorted(answer.json()["version"] for answer in answers) == list(range(2, 10))
    assert await service.predict([0]) == f"{service.toys.name}:2"
