"""An inference worker's end of the prediction queue: wait, take, reply, beat. Knows no model and no thread.

Every method raises `redis.RedisError` when Valkey is away; the client reconnects by itself on the next call.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, cast

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.contracts.messages import PredictRequest, encode
from app.contracts.queues import PREDICT_DOORBELL, PREDICT_WAITING, WORKERS, predict_queue
from app.core.logging import get_logger
from app.core.predict_queue import TAKE, unpack
from workers.inference.execution import Reply

BLOCK = 1.0
"""Seconds that `wait` blocks; the longest an idle worker takes to notice that it shall stop."""
TIMEOUT = 2.0
"""Seconds for one command."""
BEAT_EXPIRES = 6
"""Seconds after its last heartbeat that a worker counts as dead."""
REPLIES_EXPIRE = 120
"""Seconds that a reply list outlives its gateway."""

log = get_logger(__name__)


class Link:
    """Thread-safe: each thread gets a connection from the pool."""

    def __init__(self, redis_url: str, name: str) -> None:
        self._name = f"modelwright-{name}"
        self._redis = redis.Redis.from_url(
            redis_url,
            client_name=self._name,
            socket_timeout=BLOCK + TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # a repeated take would drop what the first one took
        )
        self._beat_key = f"{WORKERS}:inference:{name}"

    def wait(self) -> bool:
        """Block until some version has requests; False after `BLOCK` seconds without."""
        # Moving the entry to the back of its own list blocks without removing it: no wake-up can be lost.
        return self._redis.blmove(PREDICT_DOORBELL, PREDICT_DOORBELL, cast(int, BLOCK)) is not None

    def wake(self) -> None:
        """End the `wait` of this worker's other threads now."""
        for connection in self._redis.client_list():
            if connection["name"] == self._name:
                self._redis.client_unblock(int(connection["id"]))

    def take(self, inputs: int) -> tuple[bool, list[PredictRequest]]:
        """Requests of one version with about `inputs` inputs, and whether any version still waits."""
        call = self._redis.eval(TAKE, 2, PREDICT_DOORBELL, PREDICT_WAITING, predict_queue(""), inputs)
        versions, items = cast(tuple[int, list[bytes]], call)
        requests = []
        for item in items:
            try:
                requests.append(unpack(item))
            except msgspec.DecodeError as exc:
                log.error("predict_request_unreadable", reason=str(exc), bytes=len(item))
        return versions > 0, requests

    def reply(self, replies: Iterable[Reply]) -> None:
        """Push replies, those for one gateway in one command."""
        lists: dict[str, list[bytes]] = defaultdict(list)
        for reply_to, reply in replies:
            lists[reply_to].append(encode(reply))
        if not lists:
            return
        pipe: Any = self._redis.pipeline(transaction=False)
        for name, items in lists.items():
            pipe.rpush(name, *items)
            pipe.expire(name, REPLIES_EXPIRE)
        pipe.execute()

    def beat(self) -> None:
        """Say that this worker lives."""
        self._redis.set(self._beat_key, b"", ex=BEAT_EXPIRES)

    def sign_off(self) -> None:
        """Say that it no longer does."""
        self._redis.delete(self._beat_key)

    def close(self) -> None:
        self._redis.close()
