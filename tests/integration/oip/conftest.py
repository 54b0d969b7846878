"""A gateway on a port, a worker over toy artifacts, and the stock `tritonclient`."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.http as triton
import uvicorn
from httpx2 import Client

from app.core.ids import new_id
from app.core.process import free_port
from app.core.settings import Settings
from app.main import create_app
from app.registry.session import Database
from tests import toy_artifact
from tests.integration.oip.toy_oip import Bearer, Toys
from workers.inference.consumer import Consumer


@pytest.fixture(scope="module")
def toys(database: Database, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    found = Toys(database, tmp_path_factory.mktemp("toys"))
    assert settings.redis_url
    consumer = Consumer(settings.redis_url, settings, found.folders.__getitem__)
    consumer.start()
    yield found
    consumer.stop()


@pytest.fixture(scope="module")
def classifier(toys: Toys) -> str:
    name = f"toy-{new_id('')[:8]}"
    toys.publish(name)
    toys.publish(name)
    return name


@pytest.fixture(scope="module")
def tagger(toys: Toys) -> str:
    return toys.publish(f"tag-{new_id('')[:8]}", task="token-classification", labels=toy_artifact.IOB2).model.name


@pytest.fixture(scope="module")
def address(settings: Settings) -> Iterator[str]:
    """A gateway as uvicorn runs it: the stock client needs a socket."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=free_port(), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(address: str, admin_key: str) -> Iterator[Any]:
    found = triton.InferenceServerClient(address, concurrency=8)
    found.register_plugin(Bearer(admin_key))
    yield found
    found.close()


@pytest.fixture
def http(address: str, admin_key: str) -> Iterator[Client]:
    with Client(base_url=f"http://{address}", headers={"authorization": f"Bearer {admin_key}"}) as found:
        yield found
