"""Gateway and inference worker over a real Valkey: every caller gets exactly its own rows."""

import asyncio
import random
import time
from contextlib import closing
from pathlib import Path

import pytest
import redis

from app.contracts.queues import PREDICT_DOORBELL, PREDICT_WAITING
from app.core.dataplane import CHUNK
from app.core.errors import DeadlineExceeded
from tests import toy_artifact
from tests.integration.plane.toy_plane import (
    LABELS,
    Worker,
    gateway,
    labels_of,
    service,
    serving,
    soon,
    text,
    until_waiting,
)
from workers.inference.link import Link


async def test_hundreds_of_mixed_callers_get_exactly_their_own_rows(
    url: str, artifacts: Path, client: redis.Redis
) -> None:
    draw = random.Random(11)
    async with service(url, artifacts, session_memory_bytes=40 << 20, queue_tokens=1 << 20) as (plane, worker):

        async def caller() -> int:
            version, size = draw.choice([*LABELS, "ner"]), draw.choice([1, 1, 1, 2, 7, 40, 150])
            words = [draw.randrange(toy_artifact.WORDS) for _ in range(size)]
            if version == "ner":
                tokens = [f"w{word}" for word in words]
                reply = await plane.predict("ner", [{"tokens": tokens}], {}, soon())
                assert reply.outputs
                expected = [toy_artifact.IOB2[word % 4] for word in words]
                assert [t[2:] for t in reply.outputs[0]["tags"]] == [t[2:] for t in expected]
            else:
                texts = [text(word, draw.randint(1, 14)) for word in words]
                expected = [LABELS[version][word % len(LABELS[version])] for word in words]
                reply = await plane.predict(version, texts, {}, soon())
                assert labels_of(reply) == expected
            return reply.batch_size

        sizes = await asyncio.gather(*(caller() for _ in range(400)))
        assert max(sizes) > 8  # they did share batches
        assert worker.count("requests_total", outcome="answered") >= 400
        padding, real = (worker.count("tokens_total", kind=kind) for kind in ("padding", "real"))
        assert padding / (padding + real) < 0.1
        assert await plane.waiting() == 0
    assert not client.exists(PREDICT_DOORBELL, PREDICT_WAITING)


async def test_two_gateways_and_two_workers_share_one_queue(url: str, artifacts: Path) -> None:
    async with (
        service(url, artifacts) as (one, _),
        service(url, artifacts) as (two, _),
    ):
        assert len(await one.workers()) == 2
        calls = [plane.predict("abc", [text(k % 32, 2)], {}, soon()) for k in range(60) for plane in (one, two)]
        replies = await asyncio.gather(*calls)
        assert [labels_of(reply) for reply in replies] == [["abc"[k % 32 % 3]] for k in range(60) for _ in range(2)]


async def test_a_large_call_is_split_and_merged_in_order(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, worker):
        reply = await plane.predict("abc", [text(k % 32, 1 + k % 5) for k in range(1024)], {}, soon())
        assert labels_of(reply) == ["abc"[k % 32 % 3] for k in range(1024)]
        assert reply.tokens == sum(3 + k % 5 for k in range(1024))
        assert worker.count("requests_total", outcome="answered") == 1024 / CHUNK
        assert (await plane.predict("abc", [], {}, soon())).outputs == []


async def test_a_poison_input_fails_alone_and_is_named(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, _):
        calls = [plane.predict("abc", ["w1 poison" if k == 5 else "w1"], {}, soon()) for k in range(12)]
        replies = await asyncio.gather(*calls)
        assert [reply.error for reply in replies] == [None] * 5 + ["internal_error"] + [None] * 6
        unreadable = await plane.predict("abc", ["w1"] * 70 + [7], {}, soon())
        assert (unreadable.error, unreadable.param) == ("invalid_input", "inputs[70]")


async def test_a_version_that_cannot_be_loaded_fails_its_own_requests(url: str, artifacts: Path) -> None:
    async with service(url, artifacts) as (plane, worker):
        names = ["corrupt", "abc", "absent", "corrupt", "abc"]
        replies = await asyncio.gather(*(plane.predict(name, ["w1"], {}, soon()) for name in names))
        assert [reply.error for reply in replies] == [
            "model_load_failed", None, "model_load_failed", "model_load_failed", None,
        ]  # fmt: skip
        assert "model.onnx" in replies[0].message
        assert "hashes to" in replies[0].message
        assert worker.located.count("corrupt") == 1


async def test_what_is_past_its_deadline_is_never_computed(url: str, artifacts: Path) -> None:
    with closing(Link(url, "ghost")) as ghost:
        ghost.beat()  # a worker that lives and takes nothing
        async with gateway(url) as plane:
            late = [plane.predict("abc", ["w1", "w2"], {}, soon(0.2)) for _ in range(3)]
            results = await asyncio.gather(*late, return_exceptions=True)
            assert [type(result) for result in results] == [DeadlineExceeded] * 3
            with pytest.raises(DeadlineExceeded, match="no answer to 1 inputs within the deadline"):
                await plane.predict("abc", ["w1"], {}, time.time())
            assert await plane.waiting() == 12
            async with serving(Worker(url, artifacts)) as worker:
                await until_waiting(plane, 0)
                reply = await plane.predict("abc", ["w1"], {}, soon())
                assert labels_of(reply) == ["b"]
                assert worker.count("requests_total", outcome="expired") == 3
                assert worker.count("rows_total") == 1
