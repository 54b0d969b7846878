"""One batch, one reply a request; a poison input fails its own request alone."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.contracts.messages import PredictReply, PredictRequest
from app.core.metrics import InferenceMetrics
from tests import toy_artifact
from workers.inference.batcher import Batch, Batcher, Batching
from workers.inference.execution import InHand, admit, execute
from workers.inference.runtime import ON_CPU, Float32, Int64
from workers.inference.sessions import LoadedVersion, load


@pytest.fixture
def version(tmp_path: Path) -> LoadedVersion:
    return load("v1", tmp_path, toy_artifact.build(tmp_path), "onnxruntime-cpu", tmp_path / "providers.json")


def request(name: str, inputs: list[Any], parameters: dict[str, Any] | None = None) -> PredictRequest:
    return PredictRequest(name, f"replies-of-{name}", "v1", time.time() + 60, inputs, parameters or {})


def batch_of(version: LoadedVersion, *requests: PredictRequest) -> Batch[LoadedVersion, InHand]:
    """All requests in one batch, whatever the padding."""
    batcher: Batcher[LoadedVersion, InHand] = Batcher(lambda _: Batching(4096, 1.0, 1000, 1), time.time)
    for entry in requests:
        batcher.add(admit(version, entry, InferenceMetrics(CollectorRegistry())))
    batch = batcher.next()
    assert batch is not None
    assert batcher.tokens == 0
    return batch


def replies_of(version: LoadedVersion, *requests: PredictRequest) -> tuple[dict[str, PredictReply], CollectorRegistry]:
    registry = CollectorRegistry()
    replies = execute(batch_of(version, *requests), InferenceMetrics(registry))
    assert all(reply_to == f"replies-of-{reply.id}" for reply_to, reply in replies)
    return {reply.id: reply for _, reply in replies}, registry


def test_rows_come_back_in_order_to_their_own_request(version: LoadedVersion) -> None:
    inputs = ["w0", "w1 w1 w1 w1", "w2 w2", "w1"]
    replies, registry = replies_of(version, request("one", inputs), request("two", ["w2 w2 w2"]))
    assert [output["label"] for output in replies["one"].outputs or ()] == ["a", "b", "c", "b"]
    assert [output["label"] for output in replies["two"].outputs or ()] == ["c"]
    assert (replies["one"].tokens, replies["two"].tokens) == (3 + 6 + 4 + 3, 5)
    assert {reply.batch_size for reply in replies.values()} == {5}
    assert registry.get_sample_value("modelwright_inference_rows_total", {"model": ""}) == 5
    assert (
        registry.get_sample_value("modelwright_inference_tokens_total", {"model": "", "kind": "padding"}) == 5 * 6 - 21
    )


def test_a_poison_input_fails_alone(version: LoadedVersion) -> None:
    replies, registry = replies_of(
        version, request("fine", ["w1"]), request("bad", ["w1", "w1 poison"]), request("also", ["w2 w2", "w0"])
    )
    assert (replies["bad"].error, replies["bad"].outputs) == ("internal_error", None)
    assert "out of data bounds" in replies["bad"].message
    assert [output["label"] for output in replies["also"].outputs or ()] == ["c", "a"]
    assert replies["fine"].error is None
    outcome = "modelwright_inference_requests_total"
    assert registry.get_sample_value(outcome, {"outcome": "answered"}) == 2
    assert registry.get_sample_value(outcome, {"outcome": "internal_error"}) == 1


def test_a_lone_poison_request_is_not_run_twice(version: LoadedVersion) -> None:
    calls: list[tuple[int, ...]] = []

    class Counting:
        batching = ON_CPU

        def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
            calls.append(ids.shape)
            return version.runtime.run(ids, mask)

    counting = dataclasses.replace(version, runtime=Counting())
    replies, _ = replies_of(counting, request("bad", ["poison"]))
    assert replies["bad"].error == "internal_error"
    assert calls == [(1, 3)]


def test_logits_that_are_not_finite_are_an_error_not_an_answer(version: LoadedVersion) -> None:
    class Diverged:
        batching = ON_CPU

        def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
            logits = version.runtime.run(ids, mask).copy()
            logits[(ids == 5).any(axis=1)] = math.nan  # id 5 is w1
            return logits.astype(np.float32)

    diverged = dataclasses.replace(version, runtime=Diverged())
    replies, _ = replies_of(diverged, request("nan", ["w0", "w1"]), request("fine", ["w0"]))
    assert "not finite" in replies["nan"].message
    assert replies["fine"].outputs


def test_a_parameter_that_breaks_the_output_fails_its_own_request(version: LoadedVersion) -> None:
    replies, _ = replies_of(version, request("bad", ["w1"], {"top_k": "two"}), request("fine", ["w1"]))
    assert replies["bad"].error == "internal_error"
    assert replies["fine"].outputs


def test_a_request_larger_than_the_budget_answers_after_its_last_batch(version: LoadedVersion) -> None:
    batcher: Batcher[LoadedVersion, InHand] = Batcher(lambda _: Batching(12, 0.1, 1000, 1), time.time)
    long = request("long", ["w0", "w1 w1 w1", "w2", "w1 w1", "w0 w0 w0 w0"])
    batcher.add(admit(version, long, InferenceMetrics(CollectorRegistry())))
    metrics = InferenceMetrics(CollectorRegistry())
    rounds = []
    while batch := batcher.next():
        rounds.append(execute(batch, metrics))
    assert len(rounds) > 2
    assert not any(rounds[:-1])
    ((_, reply),) = rounds[-1]
    assert [output["label"] for output in reply.outputs or ()] == ["a", "b", "c", "b", "a"]
