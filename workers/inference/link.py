"""An inference worker's end of the prediction queue: wait, take, reply, beat. Knows no model and no thread.

Every method raises `redis.RedisError` when Valkey is away; the client reconnects by itself on the next call.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.contracts.messages import PredictRequest, encode
from app.contracts.queues import (
    PREDICT_DIRECT,
    PREDICT_DOORBELL,
    PREDICT_IDLE,
    PREDICT_WAITING,
    WORKERS,
    inference_connection,
    predict_queue,
)
from app.core.logging import get_logger
from app.core.predict_queue import TAKE, TURN_TOKENS, unpack
from workers.inference.execution import Reply

BLOCK = 1.0
"""Seconds that `wait` blocks; the longest an idle worker takes to notice that it shall stop."""
TIMEOUT = 2.0
"""Seconds for one command."""
BEAT_EXPIRES = 6
"""Seconds after its last heartbeat that a worker counts as dead."""
REPLIES_EXPIRE = 120
"""Seconds that a reply list outlives its gateway."""
IDLE_EXPIRES = int((BLOCK + 0.5) * 1000)
"""Milliseconds after which a worker that died while it was idle is handed nothing."""

_KEYS = (PREDICT_DOORBELL, PREDICT_WAITING, PREDICT_DIRECT)

log = get_logger(__name__)


class Link:
    """Thread-safe: each thread gets a connection from the pool."""

    def __init__(self, redis_url: str, name: str) -> None:
        self._name = inference_connection(name)
        self._redis = redis.Redis.from_url(
            redis_url,
            client_name=self._name,
            socket_timeout=BLOCK + TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # a repeated take would drop what the first one took
        )
        self._beat_key = f"{WORKERS}:inference:{name}"

    def wait(self, replies: Iterable[Reply] = ()) -> list[PredictRequest] | None:
        """Send `replies`, then block: until a request comes that found nothing before it, or (an empty list) until some
        line has requests. None after `BLOCK` seconds without either."""
        pipe = self._redis.pipeline(transaction=False)
        self._push(pipe, replies)
        pipe.set(PREDICT_IDLE, b"", px=IDLE_EXPIRES)
        pipe.blmpop(BLOCK, 1, PREDICT_DIRECT, direction="LEFT")
        popped = pipe.execute()[-1]
        return None if popped is None else _unpacked(popped[1])

    def wake(self) -> None:
        """End the `wait` of this worker's other threads now; nothing is handed to them from here on."""
        self._redis.delete(PREDICT_IDLE)
        for connection in self._redis.client_list():
            if connection["name"] == self._name:
                self._redis.client_unblock(int(connection["id"]))

    def take(self, tokens: int, replies: Iterable[Reply] = ()) -> list[PredictRequest]:
        """Requests with about `tokens` tokens, a turn of each line after the other; none when none wait.

        `replies` go out on the way.
        """
        pipe = self._redis.pipeline(transaction=False)
        self._push(pipe, replies)
        turn = str(min(tokens, TURN_TOKENS))
        pipe.eval(TAKE, len(_KEYS), *_KEYS, predict_queue(""), str(tokens), turn)
        return _unpacked(pipe.execute()[-1])

    def reply(self, replies: Iterable[Reply]) -> None:
        """Push replies."""
        pipe = self._redis.pipeline(transaction=False)
        self._push(pipe, replies)
        pipe.execute()

    def _push(self, pipe: Any, replies: Iterable[Reply]) -> None:
        """Those for one gateway in one command."""
        lists: dict[str, list[bytes]] = defaultdict(list)
        for reply_to, reply in replies:
            lists[reply_to].append(encode(reply))
        for name, items in lists.items():
            pipe.rpush(name, *items)
            pipe.expire(name, REPLIES_EXPIRE)  # each time: a list that was emptied has forgotten it

    def beat(self) -> None:
        """Say that this worker lives."""
        self._redis.set(self._beat_key, b"", ex=BEAT_EXPIRES)

    def sign_off(self) -> None:
        """Say that it no longer does."""
        self._redis.delete(self._beat_key, PREDICT_IDLE)

    def close(self) -> None:
        self._redis.close()


def _unpacked(items: Iterable[bytes]) -> list[PredictRequest]:
    requests = []
    for item in filter(None, items):
        try:
            requests.append(unpack(item))
        except msgspec.DecodeError as exc:
            log.error("predict_request_unreadable", reason=str(exc), bytes=len(item))
    return requests
