"""Fixtures of all tiers: real servers from wheels, a database built by the migrations, tiers marked by folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from app.core.embedded import EmbeddedPostgres, EmbeddedValkey

# Two test processes share the cores, and toy models gain nothing from threads: with two each, a step of a toy job
# took about 1 s instead of 2 ms, because OpenMP's threads wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a busy machine is no failure. In CI the examples are the same in every run.
hypothesis.settings.register_profile(
    "modelwright",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("modelwright")

TIERS = ("unit", "architecture", "conformance", "integration", "e2e", "chaos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder is the tier."""
    for item in items:
        for tier in TIERS:
            if f"tests/{tier}/" in item.nodeid:
                item.add_marker(tier)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey for this test process."""
    server = EmbeddedValkey.start(tmp_path_factory.mktemp("valkey"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL for this test process, its schema built by the migrations."""
    from app.registry.migrate import upgrade

    server = EmbeddedPostgres.start(tmp_path_factory.mktemp("postgres"))
    upgrade(server.url)
    yield server.url
    server.stop()


@pytest.fixture
def repo_root() -> Path:
    return Path(__file__).parent.parent
