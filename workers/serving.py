"""Wires an inference worker's data plane to registry and store: where a version lies, which are wanted, and
the port on which its metrics are shown."""

from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server

from app.contracts.placement import Desired
from app.core.errors import NotFound
from app.core.metrics import InferenceMetrics
from app.registry.models import ModelRepository
from app.registry.placement import desired
from workers.context import WorkerContext
from workers.inference.consumer import Consumer


def build_consumer(context: WorkerContext) -> Consumer:
    """The data plane, not yet started."""

    def locate(version_id: str) -> tuple[Path, str]:
        with context.database.unit_of_work() as session:
            row = ModelRepository(session).version(version_id)
        if row is None:
            raise NotFound(f"version {version_id} is not in the registry")
        return context.store.path(row.artifact), row.digest

    def wanted() -> Desired:
        with context.database.unit_of_work() as session:
            return desired(session)

    metrics = InferenceMetrics(CollectorRegistry())
    if address := context.settings.metrics_address:
        host, _, port = address.rpartition(":")
        start_http_server(int(port), host, registry=metrics.registry)  # a daemon thread of this worker
    return Consumer(context.redis_url, context.settings, locate, desired=wanted, metrics=metrics)
