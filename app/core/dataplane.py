"""The gateway's end of the inference queue: push requests, await replies. Imports no model runtime.

One reader for each gateway process pops the process's own reply list and resolves futures by request id.
Calls fail in about a second when Valkey is away or frozen, or when no inference worker lives: every command
ends after `TIMEOUT`, only the reader blocks longer, on a connection of its own. Predictions are idempotent, so
after Valkey or a worker was lost, what still waits is simply sent again.
"""

import asyncio
import itertools
import re
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.contracts.messages import PredictReply, PredictRequest, decode_reply
from app.contracts.queues import PREDICT_DOORBELL, PREDICT_WAITING, WORKERS, predict_queue, reply_list
from app.core.errors import DeadlineExceeded, ModelwrightError, Overloaded, Unavailable
from app.core.ids import new_id
from app.core.logging import get_logger
from app.core.metrics import DataPlaneMetrics
from app.core.predict_queue import PUSH, pack
from app.core.settings import Settings

CHUNK = 64
"""Inputs in one queued request: large calls share the workers with small ones, and with each other."""
TIMEOUT = 1.0
"""Seconds for one command to Valkey; on a local network one takes 0.0002."""
BLOCK = 5.0
"""Seconds the reader's blocking pop waits; a silent connection is dropped `TIMEOUT` later."""
LIVENESS = 1.0
"""Seconds for which a sighting of a live worker counts, and between looks while a call waits."""

log = get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Pending:
    request: PredictRequest
    future: "asyncio.Future[PredictReply]"


class DataPlane:
    """Predictions through Valkey. `start` needs no live server; the reader connects when there is one."""

    def __init__(self, redis_url: str, settings: Settings, metrics: DataPlaneMetrics | None = None) -> None:
        self._limit = settings.queue_limit
        self._reply_to = reply_list(new_id("gw-"))
        self._metrics = metrics or DataPlaneMetrics(CollectorRegistry())
        # No socket timeouts, which redis-py would pay with a task for each command, and whose `wait_for` loses
        # cancellations on Python 3.11: each command runs under `asyncio.timeout` here instead. No retries, which
        # would multiply it.
        options: dict[str, Any] = {
            "socket_timeout": None,
            "socket_connect_timeout": TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        self._commands = Redis.from_pool(
            BlockingConnectionPool.from_url(redis_url, max_connections=16, timeout=TIMEOUT, **options)
        )
        self._blocking = Redis.from_url(redis_url, **options)
        self._pending: dict[str, _Pending] = {}
        self._ids = itertools.count()
        self._reader: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[Unavailable | None] | None = None
        self._seen_alive = float("-inf")
        self._known: set[str] = set()

    async def start(self) -> None:
        """Start the reader of replies."""
        self._reader = asyncio.create_task(self._read_replies(), name="predict-replies")

    async def stop(self) -> None:
        """Stop the reader and fail the calls that still wait."""
        for task in (self._reader, self._probe):
            while task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(Unavailable("the gateway stops: send the request again"))
        await self._commands.aclose()
        await self._blocking.aclose()

    async def predict(
        self, version_id: str, inputs: Sequence[Any], parameters: dict[str, Any], deadline: float
    ) -> PredictReply:
        """The outputs for `inputs`, in order; `deadline` in Unix seconds.

        What the worker refuses stands in the reply's `error`. Raises `Overloaded`, `DeadlineExceeded` and
        `Unavailable`.
        """
        started = time.time()
        try:
            reply = await self._predict(version_id, inputs, parameters, deadline, started)
        except ModelwrightError as exc:
            outcome = {Overloaded: "refused", DeadlineExceeded: "expired"}.get(type(exc), "unavailable")
            self._metrics.calls.labels(outcome).inc()
            raise
        self._metrics.calls.labels(reply.error or "answered").inc()
        self._metrics.seconds.observe(time.time() - started)
        return reply

    async def _predict(
        self,
        version_id: str,
        inputs: Sequence[Any],
        parameters: dict[str, Any],
        deadline: float,
        started: float,
    ) -> PredictReply:
        if not inputs:
            return PredictReply(id="", outputs=[])
        if deadline <= started:
            raise _expired(0.0, len(inputs))
        await self._require_worker()
        loop = asyncio.get_running_loop()
        sent = []
        for at in range(0, len(inputs), CHUNK):
            request = PredictRequest(
                id=str(next(self._ids)),
                reply_to=self._reply_to,
                version_id=version_id,
                deadline=deadline,
                inputs=list(inputs[at : at + CHUNK]),
                parameters=parameters,
            )
            sent.append(_Pending(request, loop.create_future()))
            self._pending[request.id] = sent[-1]
        try:
            await self._push([pending.request for pending in sent], self._limit)
            await self._wait({pending.future for pending in sent}, deadline, started, len(inputs))
            return _merge([pending.future.result() for pending in sent])
        finally:
            for pending in sent:
                del self._pending[pending.request.id]

    async def workers(self, role: str = "inference") -> list[str]:
        """Names of the live workers of a role. Raises `Unavailable` when Valkey does not answer."""
        prefix = f"{WORKERS}:{role}:"
        found: list[str] = []
        try:
            async with asyncio.timeout(TIMEOUT):
                async for key in self._commands.scan_iter(match=prefix + "*", count=1000):
                    found.append(key.decode().removeprefix(prefix))
        except (RedisError, OSError) as exc:
            raise _away(exc) from exc
        return sorted(found)

    async def waiting(self) -> int:
        """Inputs in the queue. Raises `Unavailable` when Valkey does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT):
                return int(await self._commands.get(PREDICT_WAITING) or 0)
        except (RedisError, OSError) as exc:
            raise _away(exc) from exc

    async def _push(self, requests: list[PredictRequest], limit: int) -> None:
        """All requests (of one version) or none, in one atomic step."""
        version_id, inputs = requests[0].version_id, sum(len(r.inputs) for r in requests)
        keys = (predict_queue(version_id), PREDICT_DOORBELL, PREDICT_WAITING)
        items = [pack(request) for request in requests]
        try:
            async with asyncio.timeout(TIMEOUT):
                # EVAL, not EVALSHA: Valkey caches by hash all the same; a restarted server needs no reload.
                call = self._commands.eval(PUSH, 3, *keys, limit, version_id, inputs, *cast(list[str], items))
                admitted, waiting = await cast(Awaitable[tuple[int, int]], call)
        except (RedisError, OSError) as exc:
            raise _away(exc) from exc
        if not admitted:
            raise Overloaded(
                f"{waiting} inputs wait and this call brings {inputs}; the limit is {limit}: try again in "
                f"{Overloaded.retry_after} s, send fewer, start more workers or raise MODELWRIGHT_QUEUE_LIMIT"
            )

    async def _wait(
        self, futures: "set[asyncio.Future[PredictReply]]", deadline: float, started: float, inputs: int
    ) -> None:
        left = futures
        while left:
            budget = deadline - time.time()
            if budget <= 0:
                raise _expired(deadline - started, inputs)
            # Until the last sighting is stale, whoever made it: a frozen Valkey is noticed within two seconds.
            stale = self._seen_alive + LIVENESS - time.monotonic()
            _, left = await asyncio.wait(left, timeout=min(budget, max(0.0, stale)))
            if left:
                await self._require_worker()

    async def _require_worker(self) -> None:
        """Raises `Unavailable` unless a worker was seen within `LIVENESS`; all callers share one look."""
        if time.monotonic() - self._seen_alive < LIVENESS:
            return
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._look_for_workers())
        if problem := await asyncio.shield(self._probe):
            raise problem

    async def _look_for_workers(self) -> Unavailable | None:
        try:
            alive = set(await self.workers())
            if not alive:
                return Unavailable("no live inference worker: start one with `modelwright worker inference`")
            if self._known - alive:
                await self._resend("worker_lost")
        except Unavailable as exc:
            return exc
        self._known, self._seen_alive = alive, time.monotonic()
        return None

    async def _resend(self, reason: str) -> None:
        """Send again what still waits: who took it, or the queue that held it, is gone."""
        now = time.time()
        waiting = [p.request for p in self._pending.values() if not p.future.done() and p.request.deadline > now]
        for request in waiting:
            await self._push([request], limit=1 << 52)  # admitted once already
            self._metrics.resent.inc()
        log.info("predict_resent", reason=reason, requests=len(waiting))

    async def _read_replies(self) -> None:
        """Pop replies for ever; after a lost connection, reconnect and send again what waits."""
        lost, pause = False, 0.05
        while True:
            try:
                if lost:
                    await self._resend("connection_lost")
                    lost, pause = False, 0.05
                call = self._blocking.blmpop(BLOCK, 1, self._reply_to, direction="LEFT", count=256)
                async with asyncio.timeout(BLOCK + TIMEOUT):
                    popped = await cast(Awaitable[list[Any] | None], call)
                for data in popped[1] if popped else ():
                    self._resolve(data)
            except (RedisError, OSError, Unavailable) as exc:
                if not lost:
                    log.warning("predict_reader_lost_valkey", reason=str(exc))
                lost = True
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)

    def _resolve(self, data: bytes) -> None:
        try:
            reply = decode_reply(data)
        except msgspec.DecodeError as exc:
            log.error("predict_reply_unreadable", reason=str(exc))
            return
        pending = self._pending.get(reply.id)
        if pending is not None and not pending.future.done():  # else: given up, or answered twice
            pending.future.set_result(reply)


def _merge(replies: list[PredictReply]) -> PredictReply:
    """The chunks of a call as one reply; the first error stands for all, its input counted in the call."""
    for chunk, reply in enumerate(replies):
        if reply.error:
            index = re.fullmatch(r"inputs\[(\d+)\]", reply.param or "")
            param = f"inputs[{int(index[1]) + chunk * CHUNK}]" if index else reply.param
            return msgspec.structs.replace(reply, param=param)
    if len(replies) == 1:
        return replies[0]
    return PredictReply(
        id=replies[0].id,
        outputs=[output for reply in replies for output in reply.outputs or ()],
        tokens=sum(reply.tokens for reply in replies),
        batch_size=max(reply.batch_size for reply in replies),
    )


def _expired(seconds: float, inputs: int) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"no answer to {inputs} inputs within the deadline of {seconds:.3f} s: raise the timeout, send fewer "
        "inputs, or start more inference workers"
    )


def _away(exc: Exception) -> Unavailable:
    return Unavailable(
        f"the inference queue does not answer ({type(exc).__name__}): check that Valkey runs and that "
        "MODELWRIGHT_REDIS_URL is right, then send the request again"
    )
