"""Prometheus metrics, made over a registry that the process hands in: nothing global, nothing at import."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class GatewayMetrics:
    """What one gateway process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "modelwright_http_requests",
            "Answered requests.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "modelwright_http_request_seconds",
            "Time to answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.predicted_inputs = Counter(
            "modelwright_predicted_inputs", "Inputs answered, by version.", ["model"], registry=self.registry
        )
        self.queue_waiting = Gauge(
            "modelwright_predict_queue_inputs", "Inputs that wait for a worker.", registry=self.registry
        )
        self.plane = DataPlaneMetrics(self.registry)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class DataPlaneMetrics:
    """The gateway's side of the prediction queue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "modelwright_predict_calls",
            "Calls to the prediction queue by outcome: answered, refused (queue full), expired, unavailable.",
            ["outcome"],
            registry=registry,
        )
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


class InferenceMetrics:
    """One inference worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "modelwright_inference_requests",
            "Requests taken, by outcome: answered, expired (never computed), or the error's code.",
            ["outcome"],
            registry=registry,
        )
        self.rows = Counter("modelwright_inference_rows", "Rows computed.", registry=registry)
        self.tokens = Counter(
            "modelwright_inference_tokens",
            "Tokens computed, by kind: real or padding.",
            ["kind"],
            registry=registry,
        )
        self.batch_rows = Histogram(
            "modelwright_inference_batch_rows",
            "Rows in a batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "modelwright_inference_batch_seconds",
            "Time of one batch in the runtime.",
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
