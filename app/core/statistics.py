"""Counts of predictions by version, added up over all gateways in Valkey: what `/v2` calls statistics.

Each gateway adds its own counts `FLUSH` seconds after the first new one, so that a prediction pays for a few
additions and no command. Counts are for people: those of a gateway that is killed in that second are lost, and all
go with Valkey. Knows no HTTP and no database; Prometheus has its own, by process (`metrics.py`).
"""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.contracts.queues import version_statistics
from app.core.errors import Unavailable
from app.core.logging import get_logger

FLUSH = 1.0
_TIMEOUT = 1.0
_KEEP_SECONDS = 30 * 86_400
"""After its last use: a deleted version leaves nothing for ever."""

log = get_logger(__name__)


@dataclass(slots=True)
class Counts:
    """Of one version."""

    inferences: int = 0
    """Inputs answered."""
    executions: float = 0.0
    """Runs of the model: a call of n inputs in a batch of b rows counts n / b, so the calls of a batch add up to 1."""
    successes: int = 0
    success_ns: int = 0
    failures: int = 0
    failure_ns: int = 0
    last_ms: int = 0
    """Unix milliseconds of the last answer."""

    def add(self, other: "Counts") -> None:
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, max(mine, theirs) if field.name == "last_ms" else mine + theirs)


class Statistics:
    """Counting needs no live Valkey; reading does."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(
            redis_url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, retry=Retry(NoBackoff(), 0)
        )
        self._new: dict[str, Counts] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None

    def answered(self, version_id: str, inputs: int, batch_size: int, seconds: float) -> None:
        counts = self._counts(version_id)
        counts.inferences += inputs
        counts.executions += inputs / max(1, batch_size)
        counts.successes += 1
        counts.success_ns += int(seconds * 1e9)
        counts.last_ms = int(time.time() * 1000)

    def failed(self, version_id: str, seconds: float) -> None:
        counts = self._counts(version_id)
        counts.failures += 1
        counts.failure_ns += int(seconds * 1e9)

    async def of(self, version_ids: Sequence[str]) -> list[Counts]:
        """Each version's counts; other gateways' are up to `FLUSH` seconds old. Raises `Unavailable`."""
        try:
            await self._flush()
            async with self._redis.pipeline(transaction=False) as pipe:
                for version_id in version_ids:
                    pipe.hgetall(version_statistics(version_id))
                found = await pipe.execute()
        except (RedisError, OSError) as exc:
            raise Unavailable(
                f"the statistics are in Valkey, which does not answer ({type(exc).__name__}); try again"
            ) from exc
        return [_counts(entry) for entry in found]

    async def stop(self) -> None:
        """Add what is new and disconnect."""
        if self._timer is not None:
            self._timer.cancel()
        await self._try_flush()
        await self._redis.aclose()

    def _counts(self, version_id: str) -> Counts:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH, self._flush_soon)
        if (counts := self._new.get(version_id)) is None:
            counts = self._new[version_id] = Counts()
        return counts

    def _flush_soon(self) -> None:
        self._timer = None
        self._flushing = asyncio.create_task(self._try_flush())

    async def _try_flush(self) -> None:
        try:
            await self._flush()
        except (RedisError, OSError) as exc:  # they are added with the next ones
            log.warning("statistics_kept_back", reason=str(exc))

    async def _flush(self) -> None:
        new, self._new = self._new, {}
        if not new:
            return
        try:
            async with self._redis.pipeline() as pipe:
                for version_id, counts in new.items():
                    key, values = version_statistics(version_id), asdict(counts)
                    pipe.hset(key, "last_ms", str(values.pop("last_ms")))
                    pipe.hincrbyfloat(key, "executions", values.pop("executions"))
                    for name, value in values.items():
                        pipe.hincrby(key, name, value)
                    pipe.expire(key, _KEEP_SECONDS)
                await cast(Awaitable[Any], pipe.execute())
        except (RedisError, OSError):
            for version_id, counts in new.items():
                self._new.setdefault(version_id, Counts()).add(counts)
            raise


def _counts(entry: dict[bytes, bytes]) -> Counts:
    values = {name.decode(): value for name, value in entry.items()}
    executions = float(values.pop("executions", 0))
    return Counts(executions=executions, **{name: int(value) for name, value in values.items()})
