"""Keys and scopes, over every route there is."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx2 import Response

from app.api.deps import declared_scope
from app.api.middleware import PUBLIC
from app.auth.keys import KeyService
from app.contracts.scopes import SCOPES
from app.core.settings import Settings
from app.main import create_app
from app.registry.keys import KeyRepository
from app.registry.session import Database
from tests.integration.helpers import error


def routes(client: TestClient) -> list[APIRoute]:
    routers = client.app.state.routers  # type: ignore[attr-defined]
    found = [r for router in routers for r in router.routes if isinstance(r, APIRoute)]
    assert len(found) > 20
    return found


def refusal(answer: Response, status: int, code: str) -> str:
    """The message of a refusal; under `/v2` it is all that there is."""
    if answer.request.url.path.startswith("/v2"):
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"]
        message: str = answer.json()["error"]
        return message
    found = error(answer, status)
    assert found["code"] == code, answer.request.url.path
    return str(found["message"])


def test_every_route_but_the_public_ones_declares_a_scope(anonymous: TestClient) -> None:
    bare = [r.path for r in routes(anonymous) if not declared_scope(r.dependencies)]
    assert set(bare) <= PUBLIC


def test_every_route_refuses_a_call_without_a_key(anonymous: TestClient) -> None:
    for route in routes(anonymous):
        for method in route.methods or ():
            answer = anonymous.request(method, route.path.replace(":path", ""))
            if route.path in PUBLIC:
                assert answer.status_code in (200, 503), route.path
            else:
                assert "needs a key" in refusal(answer, 401, "missing_api_key")


def test_every_route_refuses_a_key_without_its_scope(anonymous: TestClient, keys: KeyService) -> None:
    by_scope = {s: keys.create(f"only {s}", [s]) for s in SCOPES if s != "admin"}
    for route in routes(anonymous):
        needed = declared_scope(route.dependencies)
        if needed is None:
            continue
        other = next(s for s in by_scope if s != needed)
        for method in route.methods or ():
            headers = {"authorization": f"Bearer {by_scope[other]}"}
            answer = anonymous.request(method, route.path.replace(":path", ""), headers=headers)
            assert repr(needed) in refusal(answer, 403, "insufficient_scope")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/docs/oauth2-redirect", "/redoc"])
def test_unknown_routes_are_closed_too(anonymous: TestClient, path: str) -> None:
    error(anonymous.get(path), 401)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic abc", "Bearer mw_0000000000000000_" + "a" * 43, "Bearer \x80\xff"]
)
def test_bad_keys_are_refused(anonymous: TestClient, header: str) -> None:
    error(anonymous.get("/v1/files", headers={b"authorization": header.encode("latin-1")}), 401)


def test_a_revoked_key_stops_working(anonymous: TestClient, keys: KeyService) -> None:
    key = keys.create("short life", ["read"])
    headers = {"authorization": f"Bearer {key}"}
    assert anonymous.get("/v1/files", headers=headers).status_code == 200
    keys.revoke(key.split("_")[1])
    anonymous.app.state.services.keys._callers.forget()  # type: ignore[attr-defined]  # the second it is remembered
    error(anonymous.get("/v1/files", headers=headers), 401)


def test_an_expired_key_does_not_work(anonymous: TestClient, keys: KeyService, database: Database) -> None:
    key = keys.create("expired", ["read"], expires_in_days=1)
    with database.unit_of_work() as session:
        row = KeyRepository(session).get(key.split("_")[1])
        assert row is not None
        row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    error(anonymous.get("/v1/files", headers={"authorization": f"Bearer {key}"}), 401)


def test_the_secret_is_not_stored(keys: KeyService, database: Database) -> None:
    key = keys.create("hashed", ["read"])
    with database.unit_of_work() as session:
        row = KeyRepository(session).get(key.split("_")[1])
    assert row is not None
    assert key.split("_", 2)[2] not in str(vars(row))


def test_an_admin_key_is_made_only_when_none_works(keys: KeyService, tmp_path: Path, admin_key: str) -> None:
    assert keys.ensure_admin(tmp_path) is None
    assert not (tmp_path / "admin.key").exists()


def test_a_route_without_a_scope_stops_the_start(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.api.routes import models

    bare = APIRoute("/v1/forgotten", lambda: None)
    monkeypatch.setattr(models.router, "routes", [*models.router.routes, bare])
    with pytest.raises(RuntimeError, match="/v1/forgotten declares no scope"):
        create_app(settings)
