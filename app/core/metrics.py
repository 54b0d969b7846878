"""Prometheus metrics, made over a registry that the process hands in: nothing global, nothing at import."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.core.logging import get_logger

log = get_logger(__name__)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class GatewayMetrics:
    """What one gateway process counts; shown with what the others on its port count, if there are any."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        answered = Counter(
            "modelwright_http_requests",
            "Answered requests.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        seconds = Histogram(
            "modelwright_http_request_seconds",
            "Time to answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        # By labels, found once: it takes longer than the counting.
        self._answered, self._seconds = cache(answered.labels), cache(seconds.labels)
        self.queue_waiting = Gauge(
            "modelwright_predict_queue_tokens",
            "Tokens, estimated, that wait for a worker.",
            registry=self.registry,
            multiprocess_mode="mostrecent",  # one queue: whoever is asked looks
        )
        self.plane = DataPlaneMetrics(self.registry)
        self.versions = VersionMetrics(self.registry)

        self._shown = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # set by `app/cli/gateways.py`: values are in files then
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request; `route` is a template."""
        self._answered(method, route, str(status)).inc()
        self._seconds(method, route).observe(seconds)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._shown)


class DataPlaneMetrics:
    """The gateway's side of the prediction queue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Counter(
            "modelwright_predict_calls",
            "Calls to the prediction queue by outcome: answered, refused (queue full), expired, unavailable.",
            ["outcome"],
            registry=registry,
        )
        self.calls = cache(calls.labels)
        """By outcome, found once: it takes longer than the counting."""
        self.seconds = Histogram(
            "modelwright_predict_seconds",
            "From entering the prediction queue to the answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.resent = Counter(
            "modelwright_predict_resent",
            "Requests sent again after Valkey or a worker was lost.",
            registry=registry,
        )


class VersionMetrics:
    """Predictions by the version that made them, whichever route asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "modelwright_version_calls",
            "Calls by version and outcome: answered, or the error's code.",
            ["model", "outcome"],
            registry=registry,
        )
        self._inputs = Counter(
            "modelwright_predicted_inputs", "Inputs answered, by version.", ["model"], registry=registry
        )
        self._seconds = Histogram(
            "modelwright_version_seconds",
            "From the call to its outputs, of answered calls.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._shadow = Counter(
            "modelwright_shadow_inputs",
            "Inputs copied to a shadow version, by whether it agrees: yes, no, error, or skipped.",
            ["model", "shadow", "agree"],
            registry=registry,
        )
        # By labels, found once: it takes longer than the counting.
        self._calls_of, self._inputs_of = cache(self._calls.labels), cache(self._inputs.labels)
        self._seconds_of = cache(self._seconds.labels)

    def answered(self, model: str, inputs: int, seconds: float) -> None:
        self._calls_of(model, "answered").inc()
        self._inputs_of(model).inc(inputs)
        self._seconds_of(model).observe(seconds)

    def failed(self, model: str, code: str) -> None:
        self._calls_of(model, code).inc()

    def shadowed(self, model: str, shadow: str, agree: str, inputs: int) -> None:
        self._shadow.labels(model, shadow, agree).inc(inputs)


class StageMetrics(NamedTuple):
    """One version's, in an inference worker: each stage of a request has its own histogram."""

    rows: Counter
    real_tokens: Counter
    padding_tokens: Counter
    batch_rows: Histogram
    padding: Histogram
    queue_seconds: Histogram
    tokenize_seconds: Histogram
    batch_seconds: Histogram

    def ran(self, seconds: float, rows: int, real: int, padded: int) -> None:
        """A batch of so many rows: `real` tokens of `padded`."""
        self.batch_seconds.observe(seconds)
        self.rows.inc(rows)
        self.batch_rows.observe(rows)
        self.padding.observe(1 - real / padded)
        self.real_tokens.inc(real)
        self.padding_tokens.inc(padded - real)


class Later(Collector):
    """Counts that wait until the answer is out: 0.1 ms of a lone request on cold caches. None is missing from what the
    registry shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Before the metrics that it counts for are made: collectors are asked in their order."""
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._lock = Lock()
        registry.register(self)

    def __call__(self, count: Callable[..., None], *values: Any) -> None:
        """Have `count(*values)` done by `settle`."""
        self._waiting.append((count, values))

    def settle(self) -> None:
        """Count what waits, and what another thread is just counting."""
        with self._lock:
            while self._waiting:
                count, values = self._waiting.popleft()
                try:
                    count(*values)
                except Exception:  # whoever settles has requests in hand
                    log.exception("count_failed")

    def collect(self) -> Iterable[Metric]:
        self.settle()
        return ()


class InferenceMetrics:
    """One inference worker. `model` is a version's name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.later = Later(registry)

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(f"modelwright_inference_{name}", what, ["model"], buckets=_SECONDS, registry=registry)

        self.registry = registry
        self.requests = Counter(
            "modelwright_inference_requests",
            "Requests taken, by outcome: answered, expired (never computed), or the error's code.",
            ["outcome"],
            registry=registry,
        )
        rows = Counter("modelwright_inference_rows", "Rows computed.", ["model"], registry=registry)
        tokens = Counter(
            "modelwright_inference_tokens",
            "Tokens computed, by kind: real or padding.",
            ["model", "kind"],
            registry=registry,
        )
        batch_rows = Histogram(
            "modelwright_inference_batch_rows",
            "Rows in a batch.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        padding = Histogram(
            "modelwright_inference_padding_share",
            "Padding in a batch, as a share of its tokens.",
            ["model"],
            buckets=(0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
            registry=registry,
        )
        queue_seconds = seconds("queue_seconds", "From the gateway's push to a worker's take, one a request.")
        tokenize_seconds = seconds("tokenize_seconds", "Tokenizing one request.")
        batch_seconds = seconds("batch_seconds", "One batch in the runtime.")

        @cache
        def of(model: str) -> StageMetrics:
            return StageMetrics(
                rows=rows.labels(model),
                real_tokens=tokens.labels(model, "real"),
                padding_tokens=tokens.labels(model, "padding"),
                batch_rows=batch_rows.labels(model),
                padding=padding.labels(model),
                queue_seconds=queue_seconds.labels(model),
                tokenize_seconds=tokenize_seconds.labels(model),
                batch_seconds=batch_seconds.labels(model),
            )

        self.of: Callable[[str], StageMetrics] = of
        """By version's name; found once: it takes longer than the counting."""
        self.answered, self.expired = (self.requests.labels(outcome) for outcome in ("answered", "expired"))
        self.reply_seconds = Histogram(
            "modelwright_inference_reply_seconds",
            "Sending the replies of one batch, where other work waits.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.load_seconds = Histogram(
            "modelwright_inference_load_seconds",
            "Time to verify and load a version.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.loaded = Gauge("modelwright_inference_loaded_versions", "Versions in memory.", registry=registry)
        self.loaded_bytes = Gauge(
            "modelwright_inference_loaded_bytes", "Memory of the loaded versions, estimated.", registry=registry
        )
