"""Counts of predictions over a real Valkey: several gateways add up, and none is lost while Valkey is away."""

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from app.contracts.manifest import MANIFEST_NAME, Manifest
from app.core import statistics
from app.core.embedded import EmbeddedValkey
from app.core.errors import Unavailable
from app.core.ids import new_id
from app.core.metrics import VersionMetrics
from app.core.predict_queue import estimate
from app.core.settings import Settings
from app.core.statistics import Counts, Statistics
from app.services.models import ServableVersion
from app.services.predictions import PredictionService
from tests import toy_artifact
from tests.integration.plane.toy_plane import Worker, gateway, serving, until_waiting
from workers.inference.link import Link


async def test_calls_that_share_a_batch_are_one_execution_over_all_gateways(redis_url: str) -> None:
    one, two, version = Statistics(redis_url), Statistics(redis_url), new_id("ver-")
    for each in (one, two, two, one):
        each.answered(version, inputs=2, batch_size=8, seconds=0.5)
    two.failed(version, seconds=0.25)
    await two.stop()  # adds what it has
    found, unused = await one.of([version, new_id("ver-")])
    assert found.last_ms > 1_700_000_000_000
    found.last_ms = 0
    assert found == Counts(8, 1.0, successes=4, success_ns=2_000_000_000, failures=1, failure_ns=250_000_000)
    assert unused == Counts()
    await one.stop()


async def test_new_counts_reach_valkey_by_themselves(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "FLUSH", 0.01)
    one, two, version = Statistics(redis_url), Statistics(redis_url), new_id("ver-")
    one.answered(version, inputs=1, batch_size=1, seconds=0.1)
    while (await two.of([version]))[0].inferences == 0:
        pass
    await one.stop()
    await two.stop()


async def test_counts_are_kept_while_valkey_is_away(tmp_path: Path) -> None:
    server = EmbeddedValkey.start(tmp_path)
    counts = Statistics(server.url)
    server.process.kill()
    server.process.wait()
    counts.answered("v", inputs=3, batch_size=1, seconds=0.1)
    with pytest.raises(Unavailable, match="the statistics are in Valkey"):
        await counts.of(["v"])
    counts.answered("v", inputs=4, batch_size=1, seconds=0.1)
    assert counts._new["v"].inferences == 7
    await counts.stop()
    server.stop()


async def test_calls_that_waited_together_are_one_execution(url: str, tmp_path: Path) -> None:
    version = new_id("ver-")
    digest = toy_artifact.build(tmp_path / version)
    (tmp_path / version / "digest").write_text(digest)
    serving_of = Manifest.model_validate_json((tmp_path / version / MANIFEST_NAME).read_text()).serving
    counts = Statistics(url)
    async with gateway(url) as plane:
        predictions = PredictionService(plane, Settings(), VersionMetrics(CollectorRegistry()), counts)
        toy = ServableVersion(version, "toy:1", serving_of)
        with closing(Link(url, "ghost")) as ghost:
            ghost.beat()  # a worker that lives and takes nothing
            calls = [asyncio.ensure_future(predictions.predict(toy, ["w1", "w2"], {}, None)) for _ in range(8)]
            await until_waiting(plane, 8 * estimate(["w1", "w2"]))
            async with serving(Worker(url, tmp_path)):
                found = await asyncio.gather(*calls)
            ghost.sign_off()
    assert {answer.reply.batch_size for answer in found} == {16}
    (counted,) = await counts.of([version])
    assert (counted.inferences, counted.executions, counted.successes) == (16, 1.0, 8)  # 8 x 2 / 16
    await counts.stop()
