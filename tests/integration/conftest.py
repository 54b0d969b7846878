"""The gateway in this process over real servers; jobs and versions are rows, no worker runs."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from app.auth.keys import KeyService
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database


@pytest.fixture(scope="session")
def database(database_url: str) -> Iterator[Database]:
    found = Database(database_url)
    yield found
    found.dispose()


@pytest.fixture(scope="session")
def settings(database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        home=tmp_path_factory.mktemp("home"),
        database_url=database_url,
        redis_url=redis_url,
        max_upload_bytes=2_000_000,
        max_request_bytes=4_000_000,
        batch_concurrency=0,  # the gateways of other tests leave a test's batches alone
    )


@pytest.fixture(scope="session")
def keys(database: Database) -> KeyService:
    return KeyService(database)


@pytest.fixture(scope="session")
def admin_key(keys: KeyService) -> str:
    return keys.create("tests", ["admin"])


@pytest.fixture(scope="session")
def anonymous(settings: Settings) -> Iterator[TestClient]:
    """A client without a key. One event loop for the session, as in a real gateway."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(anonymous: TestClient, admin_key: str) -> Iterator[TestClient]:
    """A client with the admin key."""
    anonymous.headers["authorization"] = f"Bearer {admin_key}"
    yield anonymous
    del anonymous.headers["authorization"]


@pytest.fixture(params=[False, True], ids=["lenient", "strict"])
def stock(request: pytest.FixtureRequest, gateway: TestClient, admin_key: str) -> OpenAI:
    """The stock client, at the `gateway` of the file that asks."""
    return OpenAI(
        base_url="http://testserver/v1",
        api_key=admin_key,
        http_client=gateway,
        max_retries=0,
        _strict_response_validation=request.param,
    )
