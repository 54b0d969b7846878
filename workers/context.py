"""What every worker process holds: settings, database, store. Built once a process, on first use."""

from dataclasses import dataclass
from functools import lru_cache

from app.core.errors import Unavailable
from app.core.settings import Settings, get_settings
from app.registry.session import Database
from model_store.store import Store


@dataclass(frozen=True)
class WorkerContext:
    settings: Settings
    database: Database
    store: Store
    redis_url: str


@lru_cache
def get_context() -> WorkerContext:
    """Raises `Unavailable` when a URL is missing: workers never start servers of their own."""
    settings = get_settings()
    if not settings.database_url or not settings.redis_url:
        raise Unavailable(
            "MODELWRIGHT_DATABASE_URL and MODELWRIGHT_REDIS_URL must be set for a worker started by hand: "
            "`modelwright up` sets them, and `modelwright worker` finds a running `up` by MODELWRIGHT_HOME"
        )
    return WorkerContext(
        settings=settings,
        database=Database(settings.database_url, pool_size=4, patience=10),
        store=Store(settings.store_path),
        redis_url=settings.redis_url,
    )
