"""Webhooks from registration to receipt: the stock client, the outbox, a real receiver on loopback."""

import json
from collections.abc import Iterator
from dataclasses import replace
from threading import Thread
from time import monotonic, sleep
from typing import Any, Final

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, InvalidWebhookSignatureError, NotFoundError, OpenAI
from sqlalchemy import delete, func, select, text, update

from app.auth.keys import KeyService
from app.contracts.webhooks import EVENT_TYPES
from app.core import outbound
from app.core.logging import mask
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database
from app.registry.tables import CreationRow, WebhookDeliveryRow, WebhookEndpointRow
from app.registry.webhooks import Taken, WebhookRepository
from app.services import webhooks as service
from model_store.store import Store
from tests.integration.helpers import error
from tests.receiver import Received, Receiver
from workers.context import WorkerContext
from workers.webhooks import RETRY_SECONDS, deliver_once

DONE: Final = "fine_tuning.job.succeeded"
FAILED: Final = "fine_tuning.job.failed"


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    with Receiver("127.0.0.1", None).running() as found:
        yield found


@pytest.fixture
def receiver(server: Receiver) -> Iterator[Receiver]:
    yield server
    server.received.clear()
    server.statuses.clear()
    server.release.clear()


@pytest.fixture(scope="module")
def context(settings: Settings, database: Database, redis_url: str, server: Receiver) -> WorkerContext:
    settings = settings.model_copy(update={"webhook_allow": f"127.0.0.0/8:{server.port}"})
    return WorkerContext(settings, database, Store(settings.store_path), redis_url)


@pytest.fixture(scope="module")
def gateway(context: WorkerContext, admin_key: str) -> Iterator[TestClient]:
    headers = {"authorization": f"Bearer {admin_key}"}
    with TestClient(create_app(context.settings), raise_server_exceptions=False, headers=headers) as client:
        yield client


@pytest.fixture(autouse=True)
def _clean(database: Database) -> Iterator[None]:
    yield
    with database.unit_of_work() as session:
        for table in (WebhookDeliveryRow, WebhookEndpointRow, CreationRow):
            session.execute(delete(table))


def register(gateway: TestClient, url: str, *types: str) -> dict[str, Any]:
    body = {"name": "tests", "url": url, "event_types": list(types) or list(EVENT_TYPES)}
    answer = gateway.post("/v1/webhook_endpoints", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def announce(context: WorkerContext, subject: str, event_type: str = DONE) -> None:
    with context.database.unit_of_work() as session:
        WebhookRepository(session).announce(subject, event_type)


def deliveries(context: WorkerContext) -> list[WebhookDeliveryRow]:
    with context.database.unit_of_work() as session:
        return list(session.scalars(select(WebhookDeliveryRow).order_by(WebhookDeliveryRow.number)))


def pass_time(context: WorkerContext, interval: str, *columns: str) -> None:
    """The next attempt, and what else is named, moves towards the past by that much."""
    with context.database.unit_of_work() as session:
        moved = {c: text(f"{c} - interval '{interval}'") for c in ("next_attempt_at", *columns)}
        session.execute(update(WebhookDeliveryRow).values(moved))


def subjects(received: list[Received]) -> list[tuple[str, str]]:
    events = [json.loads(r.body) for r in received]
    return [(e["data"]["id"], e["type"].rsplit(".", 1)[1]) for e in events]


# --- the routes ---


def test_the_stock_client_manages_endpoints(stock: OpenAI, receiver: Receiver) -> None:
    assert stock.webhooks.event_types.list().data == list(EVENT_TYPES)
    made = [stock.webhooks.create(name=f"n{i}", url="https://example.com/in", event_types=[DONE]) for i in range(3)]
    assert [e.id for e in stock.webhooks.list(limit=2)][:3] == [e.id for e in reversed(made)]
    assert stock.webhooks.list(limit=2).has_more
    one = stock.webhooks.retrieve(made[0].id)
    assert one.model_dump() == made[0].model_dump(exclude={"signing_secret"})
    assert one.signing_secret_hint is not None
    assert made[0].signing_secret not in str(vars(one))

    same = stock.webhooks.update(one.id, name="n0")
    assert same.updated_at == one.updated_at
    changed = stock.webhooks.update(one.id, name="new", event_types=[FAILED, DONE, FAILED])
    assert (changed.name, changed.url, changed.event_types) == ("new", one.url, [FAILED, DONE])
    with pytest.raises(BadRequestError, match="not a public address"):
        stock.webhooks.update(one.id, url="https://127.0.0.1/")

    rotated = stock.webhooks.rotate_secret(one.id)
    assert rotated.signing_secret != made[0].signing_secret
    gone = stock.webhooks.delete(one.id)
    assert (gone.deleted, gone.object) == (True, "webhook_endpoint.deleted")
    for call in (stock.webhooks.retrieve, stock.webhooks.delete, stock.webhooks.rotate_secret):
        with pytest.raises(NotFoundError):
            call(one.id)
    assert not {e.id for e in made} & {e.id for e in stock.webhooks.list(after=made[1].id)}


def test_the_stock_client_tries_an_endpoint_out(stock: OpenAI, receiver: Receiver) -> None:
    endpoint = stock.webhooks.create(name="n", url=f"{receiver.url}/in", event_types=[DONE])
    receiver.statuses["/in"].append(418)
    result = stock.webhooks.test(endpoint.id, event_type=FAILED)
    assert (result.status_code, result.event_type, result.webhook_endpoint_id) == (418, FAILED, endpoint.id)
    (got,) = receiver.at("/in")
    event = stock.webhooks.unwrap(got.body, got.headers, secret=endpoint.signing_secret)
    assert event.type == FAILED
    with pytest.raises(InvalidWebhookSignatureError):
        stock.webhooks.unwrap(got.body + b" ", got.headers, secret=endpoint.signing_secret)


def test_a_test_that_nobody_answers_is_refused_for_good(gateway: TestClient, receiver: Receiver) -> None:
    endpoint = register(gateway, "https://hooks.invalid/")
    url = f"/v1/webhook_endpoints/{endpoint['id']}/test"
    assert error(gateway.post(url, json={"event_type": DONE}), 400)["code"] == "webhook_unreachable"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"url": "http://example.com/"}, "invalid_webhook_url", "url"),
        ({"url": "https://user:pw@example.com/"}, "invalid_webhook_url", "url"),
        ({"url": "https://169.254.169.254/"}, "invalid_webhook_url", "url"),
        ({"url": "https://example.com/" + "a" * 2048}, "invalid_value", "url"),
        ({"url": ""}, "invalid_value", "url"),
        ({"name": ""}, "invalid_value", "name"),
        ({"name": "a" * 129}, "invalid_value", "name"),
        ({"name": "a\0b"}, "invalid_value", "name"),
        ({"event_types": []}, "invalid_value", "event_types"),
        ({"event_types": ["batch.started"]}, "invalid_value", "event_types.0"),
        ({"secret": "whsec_mine"}, "unknown_field", "secret"),
    ],
)
def test_bad_endpoints_are_refused_at_once(gateway: TestClient, change: dict[str, Any], code: str, param: str) -> None:
    body = {"name": "n", "url": "https://example.com/", "event_types": [DONE], **change}
    found = error(gateway.post("/v1/webhook_endpoints", json=body), 400)
    assert (found["code"], found["param"]) == (code, param)


def test_the_endpoints_have_a_limit(gateway: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_ENDPOINTS", 2)
    first = register(gateway, "https://example.com/")
    register(gateway, "https://example.com/")
    body = {"name": "n", "url": "https://example.com/", "event_types": [DONE]}
    found = error(gateway.post("/v1/webhook_endpoints", json=body), 400)
    assert found["code"] == "too_many_webhook_endpoints"
    gateway.delete(f"/v1/webhook_endpoints/{first['id']}")
    register(gateway, "https://example.com/")


def test_only_admins_hear_of_webhooks(gateway: TestClient, keys: KeyService) -> None:
    headers = {"authorization": f"Bearer {keys.create('all but admin', ['read', 'train', 'predict'])}"}
    for path in ("/v1/webhook_endpoints", "/v1/webhook_endpoints/we_x", "/v1/webhook_event_types"):
        assert error(gateway.get(path, headers=headers), 403)["code"] == "insufficient_scope"


def test_a_secret_is_not_logged(gateway: TestClient) -> None:
    secret = register(gateway, "https://example.com/")["signing_secret"]
    assert mask(f"it is {secret}.") == "it is [masked]."


def test_a_repeated_rotation_is_the_same_rotation(gateway: TestClient, context: WorkerContext) -> None:
    endpoint = register(gateway, "https://example.com/")
    url, body = f"/v1/webhook_endpoints/{endpoint['id']}/rotate_secret", {"keep_old_secret_active_for_24_hours": True}
    first = gateway.post(url, json=body)
    again = gateway.post(url, json=body, headers={"x-stainless-retry-count": "1"})
    assert first.text == again.text
    with context.database.unit_of_work() as session:
        row = session.get_one(WebhookEndpointRow, endpoint["id"])
    assert (row.secret, row.previous_secret) == (first.json()["signing_secret"], endpoint["signing_secret"])


# --- the outbox ---


def test_an_event_reaches_who_asked_for_it_and_verifies(
    stock: OpenAI, gateway: TestClient, context: WorkerContext, receiver: Receiver
) -> None:
    endpoint = register(gateway, f"{receiver.url}/all")
    register(gateway, f"{receiver.url}/failures", FAILED)
    announce(context, "ftjob-1")
    assert deliver_once(context) == 1
    (got,) = receiver.received
    event = stock.webhooks.unwrap(got.body, got.headers, secret=endpoint["signing_secret"])
    (row,) = deliveries(context)
    assert (got.path, event.type, event.data.id) == ("/all", DONE, "ftjob-1")  # type: ignore[union-attr]
    assert event.id == got.headers["webhook-id"] == row.event_id
    assert row.delivered
    assert deliver_once(context) == 0


def test_nothing_is_announced_by_a_transaction_that_fails(gateway: TestClient, context: WorkerContext) -> None:
    register(gateway, "https://example.com/")
    with pytest.raises(ZeroDivisionError), context.database.unit_of_work() as session:
        WebhookRepository(session).announce("ftjob-1", DONE)
        _ = 1 / 0
    assert deliveries(context) == []


def test_a_receiver_that_fails_twice_gets_the_same_event_again(
    gateway: TestClient, context: WorkerContext, receiver: Receiver
) -> None:
    register(gateway, f"{receiver.url}/in")
    receiver.statuses["/in"].extend((500, 302))
    announce(context, "ftjob-1")
    for seconds in RETRY_SECONDS[:2]:
        assert deliver_once(context) == 1
        assert deliver_once(context) == 0  # not due
        pass_time(context, f"{seconds * 1.2} seconds")
    assert deliver_once(context) == 1
    assert deliver_once(context) == 0
    assert len({(r.headers["webhook-id"], r.body) for r in receiver.received}) == 1
    assert len(receiver.received) == 3
    (row,) = deliveries(context)
    assert (row.attempts, row.delivered, row.last_error) == (3, True, None)


def test_a_day_of_failures_loses_nothing_before_its_end(
    gateway: TestClient, context: WorkerContext, receiver: Receiver
) -> None:
    register(gateway, f"{receiver.url}/in")
    receiver.statuses["/in"].extend([503] * 50)
    announce(context, "ftjob-1")
    minutes, tries = 0, []
    while deliveries(context)[0].finished_at is None:
        if deliver_once(context):
            tries.append(minutes)
        pass_time(context, "6 minutes", "created_at")
        minutes += 6
    assert 10 <= len(tries) <= 14
    assert 19 * 60 < tries[-1] <= 24 * 60
    (row,) = deliveries(context)
    assert (row.delivered, row.last_error) == (False, "it answered 503")


def test_a_receiver_that_is_gone_is_left_alone(gateway: TestClient, context: WorkerContext, receiver: Receiver) -> None:
    register(gateway, f"{receiver.url}/in")
    receiver.statuses["/in"].append(410)
    announce(context, "ftjob-1")
    deliver_once(context)
    (row,) = deliveries(context)
    assert row.finished_at is not None
    assert (row.delivered, row.attempts) == (False, 1)


def test_events_about_one_job_keep_their_order(gateway: TestClient, context: WorkerContext, receiver: Receiver) -> None:
    register(gateway, f"{receiver.url}/in")
    receiver.statuses["/in"].append(500)
    announce(context, "ftjob-1", FAILED)
    announce(context, "ftjob-1", DONE)
    announce(context, "ftjob-2", DONE)
    deliver_once(context)
    assert subjects(receiver.received) == [("ftjob-1", "failed"), ("ftjob-2", "succeeded")]
    pass_time(context, "6 seconds")
    deliver_once(context)
    assert subjects(receiver.received)[2:] == [("ftjob-1", "failed"), ("ftjob-1", "succeeded")]


def test_a_receiver_that_hangs_delays_no_other(
    gateway: TestClient, context: WorkerContext, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "TOTAL_SECONDS", 2.0)
    register(gateway, f"{receiver.url}/hang")
    for n in range(20):
        announce(context, f"ftjob-{n}")
    register(gateway, f"{receiver.url}/in")
    for n in range(20, 30):
        announce(context, f"ftjob-{n}")
    started = monotonic()
    sender = Thread(target=deliver_once, args=(context,))
    sender.start()
    while len(receiver.at("/in")) < 10 and monotonic() - started < 1.5:
        sleep(0.01)
    heard, held = len(receiver.at("/in")), len(receiver.at("/hang"))
    receiver.release.set()
    sender.join()
    assert (heard, held) == (10, 1)


def test_many_senders_send_each_event_once(gateway: TestClient, context: WorkerContext, receiver: Receiver) -> None:
    for n in range(4):
        register(gateway, f"{receiver.url}/{n}")
    for n in range(5):
        announce(context, f"ftjob-{n}")
    senders = [Thread(target=deliver_once, args=(context,)) for _ in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert sorted(r.path for r in receiver.received) == sorted(f"/{n}" for n in range(4) for _ in range(5))
    assert all(row.delivered and row.attempts == 1 for row in deliveries(context))


def test_what_a_lost_sender_took_is_due_again_and_its_late_result_is_void(
    gateway: TestClient, context: WorkerContext
) -> None:
    def take() -> Taken | None:
        with context.database.unit_of_work() as session:
            return WebhookRepository(session).take(set())

    register(gateway, "https://example.com/")
    announce(context, "ftjob-1")
    lost = take()
    assert take() is None
    pass_time(context, "30 seconds")
    second = take()
    assert lost is not None
    assert second is not None
    for taken, finished in ((lost, False), (second, True)):
        with context.database.unit_of_work() as session:
            WebhookRepository(session).end(taken, delivered=True, error=None)
        assert (deliveries(context)[0].finished_at is not None) == finished


def test_a_rotated_secret_signs_beside_the_new_one_for_a_day(
    stock: OpenAI, gateway: TestClient, context: WorkerContext, receiver: Receiver
) -> None:
    endpoint = register(gateway, f"{receiver.url}/in")
    old, body = endpoint["signing_secret"], {"keep_old_secret_active_for_24_hours": True}
    url = f"/v1/webhook_endpoints/{endpoint['id']}/rotate_secret"
    new = gateway.post(url, json=body).json()["signing_secret"]
    announce(context, "ftjob-1")
    deliver_once(context)
    with context.database.unit_of_work() as session:
        session.execute(update(WebhookEndpointRow).values(previous_until=func.now()))
    announce(context, "ftjob-2")
    deliver_once(context)
    both, one = receiver.received
    for secret in (old, new):
        stock.webhooks.verify_signature(both.body, both.headers, secret=secret)
    stock.webhooks.verify_signature(one.body, one.headers, secret=new)
    with pytest.raises(InvalidWebhookSignatureError):
        stock.webhooks.verify_signature(one.body, one.headers, secret=old)


def test_a_deleted_endpoint_hears_nothing_more(gateway: TestClient, context: WorkerContext, receiver: Receiver) -> None:
    endpoint = register(gateway, f"{receiver.url}/in")
    announce(context, "ftjob-1")
    gateway.delete(f"/v1/webhook_endpoints/{endpoint['id']}")
    announce(context, "ftjob-2")
    assert deliver_once(context) == 0
    (row,) = deliveries(context)
    assert (row.delivered, row.last_error) == (False, "the endpoint was deleted")


def test_an_address_is_judged_again_at_delivery(
    gateway: TestClient, context: WorkerContext, receiver: Receiver
) -> None:
    register(gateway, f"{receiver.url}/in")
    announce(context, "ftjob-1")
    strict = replace(context, settings=context.settings.model_copy(update={"webhook_allow": ""}))
    assert deliver_once(strict) == 1
    assert receiver.received == []
    (row,) = deliveries(context)
    assert "MODELWRIGHT_WEBHOOK_ALLOW" in (row.last_error or "")
