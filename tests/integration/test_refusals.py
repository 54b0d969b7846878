"""Early refusals: what the application would say, on the head of the request alone; whatever is in doubt is its own."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.api.refusals import STATE, EarlyRefusals
from app.auth.keys import KeyService
from app.contracts.catalogue import BASE_ENCODERS
from app.core.drain import draining
from app.core.settings import Settings
from app.registry.session import Database
from tests.integration.toy_service import ToyService, bare_base, toy_service

NAME, BASE = "refusals-toy", "toy-encoder"
CALLS: dict[str, Any] = {
    "/predict": {"model": NAME, "inputs": "w1"},
    "/v1/embeddings": {"model": BASE, "input": "w1"},
    "/v1/moderations": {"model": f"{NAME}-rules", "input": "w1"},
    f"/v2/models/{NAME}/infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w1"]}]},
}


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, admin_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ToyService]:
    home = tmp_path_factory.mktemp("refusals")
    bare_base(home / "models" / BASE)
    with toy_service(settings, database, admin_key, home, models=home / "models") as found:
        found.add(NAME)
        found.add(f"{NAME}-rules", labels=("spam", "rude"), multi_label=True)
        found.add(BASE_ENCODERS, base_model=BASE, task="sentence-embedding")
        yield found


@pytest.fixture
def full(service: ToyService, keys: KeyService, admin_key: str) -> Iterator[ToyService]:
    """A service in which the admin key has filled all that one key may fill."""
    service.client.get("/v1/models")  # the gateway knows the key now
    admission, caller = service.client.app.state.services.plane._admission, keys.check(admin_key).key_id  # type: ignore[attr-defined]
    admission.enter(caller, 1 << 30)
    yield service
    admission.leave(caller, 1 << 30)


def early(service: ToyService) -> EarlyRefusals:
    found: EarlyRefusals = service.client.app_state[STATE]
    return found


def headers(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", f"Bearer {key}".encode())]


@pytest.mark.parametrize("path", CALLS)
def test_it_is_the_answer_of_the_application(full: ToyService, path: str) -> None:
    route = path.replace(NAME, "{model:path}")
    counted = f'modelwright_http_requests_total{{method="POST",route="{route}",status="429"}}'

    def count() -> float:
        lines = full.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(counted))

    before = count()
    expected = full.client.post(path, json=CALLS[path], headers={"x-request-id": "mine-1"})
    assert expected.status_code == 429 and count() == before + 1
    assert early(full).possible
    found = early(full).answer(path.encode(), [*headers(full.key), (b"x-request-id", b"mine-1")])
    assert found is not None and count() == before + 2
    head, body = found
    assert body == expected.content
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
    assert head.endswith(b"\r\n\r\n") and lines == dict(expected.headers)
    assert lines["retry-after"] == "1"


def test_each_has_an_id_of_its_own(full: ToyService) -> None:
    before = early(full).given
    heads = {found[0] for _ in range(9) if (found := early(full).answer(b"/predict", headers(full.key)))}
    assert early(full).given - before == len(heads) == 9 and all(b"\r\nx-request-id: req_" in head for head in heads)


def test_who_has_less_than_a_share_is_let_in(full: ToyService, keys: KeyService) -> None:
    key = keys.create("another", ["predict"])
    full.client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert early(full).answer(b"/predict", headers(key)) is None


def test_what_is_in_doubt_is_the_application_s(full: ToyService, keys: KeyService) -> None:
    reader = keys.create("no predictions", ["read"])
    full.client.get("/v1/models", headers={"authorization": f"Bearer {reader}"})
    unseen = keys.create("not seen yet", ["predict"])
    doubtful = [
        (b"/predict", headers(reader)),
        (b"/predict", headers(unseen)),
        (b"/predict", headers("mw_nonsense")),
        (b"/predict", []),
        (b"/predict", [(b"authorization", b"Basic " + full.key.encode())]),
        *((path, headers(full.key)) for path in (b"/predict?x=1", b"/v1/files", b"/", b"/v2", b"/\xff", b"*")),
    ]
    assert [early(full).answer(path, given) for path, given in doubtful] == [None] * len(doubtful)
    draining.set()
    try:
        assert not early(full).possible
    finally:
        draining.clear()


def test_there_is_no_looking_while_there_is_room(service: ToyService) -> None:
    assert not early(service).possible
    assert service.client.post("/predict", json=CALLS["/predict"]).status_code == 200
