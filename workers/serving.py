"""Wires an inference worker's data plane to registry and store: where a version's artifact lies, and its digest."""

from pathlib import Path

from app.core.errors import NotFound
from app.registry.models import ModelRepository
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

    return Consumer(context.redis_url, context.settings, locate)
