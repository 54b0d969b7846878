"""An inference worker's end of the prediction queue: wait, take, reply, beat. Knows no model and no thread.

Every method raises `redis.RedisError` when Valkey is away; the client reconnects by itself on the next call.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import redis
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.contracts.messages import PredictRequest, encode
from app.contracts.queues import (
    PREDICT_DIRECT,
    PREDICT_DOORBELL,
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
LOOK_AFTER = 1.0
"""Seconds unused after which a connection may have been closed by the server."""

_KEYS = (PREDICT_DOORBELL, PREDICT_WAITING, PREDICT_DIRECT)

log = get_logger(__name__)


class _Own(threading.local):
    """A thread's own connection."""

    connection: Any = None
    used = 0.0
    """When, by the monotonic clock."""


class Link:
    """Thread-safe: each thread has a connection of its own."""

    def __init__(self, redis_url: str, name: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """`meanwhile` is called after each write of a lane, while Valkey and the gateway are at work."""
        self._name, self._meanwhile = inference_connection(name), meanwhile
        self._redis = redis.Redis.from_url(
            redis_url,
            client_name=self._name,
            socket_timeout=BLOCK + TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # a repeated take would drop what the first one took
        )
        self._own = _Own()
        self._connections: list[Any] = []
        self._beat_key = f"{WORKERS}:inference:{name}"

    def wait(self, replies: Iterable[Reply] = ()) -> list[PredictRequest] | None:
        """Send `replies`, then block: until some gateway has a single request, or (an empty list) until some line has
        requests. None after `BLOCK` seconds without either."""
        popped = self._call([*_pushes(replies), ("BLMPOP", BLOCK, 1, PREDICT_DIRECT, "LEFT")])
        return None if popped is None else _unpacked(popped[1])

    def wake(self) -> None:
        """End the `wait` of this worker's other threads now."""
        for connection in self._redis.client_list():
            if connection["name"] == self._name:
                self._redis.client_unblock(int(connection["id"]))

    def take(self, tokens: int, replies: Iterable[Reply] = ()) -> list[PredictRequest]:
        """Requests with about `tokens` tokens, a turn of each line after the other; none when none wait.

        `replies` go out on the way.
        """
        turn = min(tokens, TURN_TOKENS)
        take = ("EVAL", TAKE, len(_KEYS), *_KEYS, predict_queue(""), tokens, turn)
        return _unpacked(self._call([*_pushes(replies), take]))

    def reply(self, replies: Iterable[Reply]) -> None:
        """Push replies."""
        if pushes := _pushes(replies):
            self._call(pushes)

    def _call(self, commands: list[tuple[Any, ...]]) -> Any:
        """Send commands in one write; the answer of the last.

        On the connection itself: redis-py's pool and pipeline take longer than Valkey does.
        """
        own = self._own
        if own.connection is None:
            own.connection = self._redis.connection_pool.make_connection()
            self._connections.append(own.connection)
        connection = own.connection
        try:
            if time.monotonic() - own.used > LOOK_AFTER and connection.is_connected:
                try:
                    connection.can_read(0)  # raises, and disconnects, where the server has closed it
                except redis.ConnectionError:
                    connection.disconnect()
            connection.send_packed_command([b"".join(map(pack_command, commands))], check_health=False)
            self._meanwhile()
            answers = [connection.read_response() for _ in commands]
        except BaseException:
            connection.disconnect()  # its other answers are not read: they would be taken for those of the next call
            raise
        own.used = time.monotonic()
        return answers[-1]

    def beat(self) -> None:
        """Say that this worker lives."""
        self._redis.set(self._beat_key, b"", ex=BEAT_EXPIRES)

    def sign_off(self) -> None:
        """Say that it no longer does."""
        self._redis.delete(self._beat_key)

    def close(self) -> None:
        """Belongs to the last thread."""
        for connection in self._connections:
            connection.disconnect()
        self._redis.close()


def _pushes(replies: Iterable[Reply]) -> list[tuple[Any, ...]]:
    """Commands: those for one gateway in one."""
    lists: dict[str, list[bytes]] = defaultdict(list)
    for reply_to, reply in replies:
        lists[reply_to].append(encode(reply))
    commands: list[tuple[Any, ...]] = []
    for name, items in lists.items():
        commands.append(("RPUSH", name, *items))
        commands.append(("EXPIRE", name, REPLIES_EXPIRE))  # each time: a list that was emptied has forgotten it
    return commands


def _unpacked(items: Iterable[bytes]) -> list[PredictRequest]:
    requests = []
    for item in filter(None, items):
        try:
            requests.append(unpack(item))
        except msgspec.DecodeError as exc:
            log.error("predict_request_unreadable", reason=str(exc), bytes=len(item))
    return requests
