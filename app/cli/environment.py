"""Where a command finds its servers: the two URLs as set, else those of a running `modelwright up`."""

import os

from app.core.embedded import running_urls
from app.core.errors import Unavailable
from app.core.settings import Settings, get_settings

DATABASE_URL, REDIS_URL = "MODELWRIGHT_DATABASE_URL", "MODELWRIGHT_REDIS_URL"


def connected_settings() -> Settings:
    """Settings with both URLs. Raises `Unavailable` saying how to get them."""
    for name, value in running_urls(get_settings().home).items():
        os.environ.setdefault(name, value)
    get_settings.cache_clear()
    settings = get_settings()
    if not settings.database_url or not settings.redis_url:
        raise Unavailable(
            f"no servers: set {DATABASE_URL} and {REDIS_URL}, or start `modelwright up` over the same "
            f"MODELWRIGHT_HOME ({settings.home.absolute()}) first"
        )
    return settings


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
