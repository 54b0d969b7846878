"""Toy artifacts, and a Valkey without what an earlier test left."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from app.contracts.queues import WORKERS
from tests import toy_artifact
from tests.integration.plane.toy_plane import LABELS, OwnValkey


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions `abc`, `xy`, `five`, the tagger `ner` and `corrupt`, whose graph was changed after publishing."""
    root = tmp_path_factory.mktemp("artifacts")
    for name, labels in LABELS.items():
        (digest := root / name / "digest").parent.mkdir()
        digest.write_text(toy_artifact.build(root / name, labels=labels))
    tagger = toy_artifact.build(root / "ner", task="token-classification", labels=toy_artifact.IOB2)
    (root / "ner" / "digest").write_text(tagger)
    (root / "corrupt").mkdir()
    (root / "corrupt" / "digest").write_text(toy_artifact.build(root / "corrupt"))
    with (root / "corrupt" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    return root


@pytest.fixture
def url(redis_url: str) -> str:
    """The shared Valkey without what an earlier test left."""
    with redis.Redis.from_url(redis_url) as client:
        for key in [*client.scan_iter("modelwright:predict:*"), *client.scan_iter(f"{WORKERS}:inference:*")]:
            client.delete(key)
    return redis_url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnValkey]:
    valkey = OwnValkey(tmp_path)
    yield valkey
    valkey.signal(signal.SIGCONT)
    valkey.server.stop()
