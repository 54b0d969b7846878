"""The gateway's end of the inference queue: push requests, await replies. Imports no model runtime.

Two connections for each gateway process: `pushing.py` sends, `replies.py` pops the process's own list, and futures are
resolved here by request id. Calls fail in about a second when Valkey is away or frozen, or when no inference worker
lives: every command ends after `TIMEOUT`, only the pop blocks longer. Predictions are idempotent, so after Valkey or a
worker was lost, what still waits is simply sent again.
"""

import asyncio
import itertools
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.contracts.messages import PredictReply, PredictRequest, decode_reply
from app.contracts.queues import PREDICT_DIRECT, PREDICT_WAITING, reply_list
from app.core.admission import Admission
from app.core.errors import DeadlineExceeded, ModelwrightError, Overloaded, Unavailable
from app.core.ids import new_id
from app.core.logging import get_logger
from app.core.metrics import DataPlaneMetrics
from app.core.patience import TIMEOUT, Patience
from app.core.predict_queue import Push, packed_tokens
from app.core.pushing import Pusher
from app.core.replies import Replies
from app.core.settings import Settings
from app.core.sightings import Sightings

CHUNK = 64
"""Inputs in one queued request: large calls share the workers with small ones, and with each other."""
LIVENESS = 1.0
"""Seconds between looks for live workers while calls wait."""
RESTART = 0.1
"""Seconds until a task that failed begins anew."""

log = get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Call:
    """A call that waits for its replies, a request each."""

    requests: list[PredictRequest]
    replies: dict[str, PredictReply]
    future: "asyncio.Future[None]"
    """Done when all replies are there, or with what went wrong."""
    urgent: bool

    def fail(self, problem: ModelwrightError) -> None:
        if not self.future.done():
            self.future.set_exception(problem)


class DataPlane:
    """Predictions through Valkey. `start` needs no live server; the reader connects when there is one."""

    def __init__(self, redis_url: str, settings: Settings, metrics: DataPlaneMetrics | None = None) -> None:
        self._limit = settings.queue_tokens
        self._admission = Admission(settings.queue_tokens)
        self._reply_to = reply_list(new_id("gw-"))
        self._metrics = metrics or DataPlaneMetrics(CollectorRegistry())
        self._refusals = self._metrics.calls("refused")
        # No socket timeouts, which redis-py would pay with a task for each command, and whose `wait_for` loses
        # cancellations on Python 3.11: each command runs under `asyncio.timeout` here instead. No retries, which
        # would multiply it.
        self._commands = Redis.from_pool(
            BlockingConnectionPool.from_url(
                redis_url,
                max_connections=16,
                timeout=TIMEOUT,
                socket_timeout=None,
                socket_connect_timeout=TIMEOUT,
                retry=Retry(NoBackoff(), 0),
            )
        )
        self._pending: dict[str, _Call] = {}
        """Request id -> the call it is part of."""
        self._ids = itertools.count()
        self._watching: asyncio.Task[None] | None = None
        self._sightings = Sightings(self._commands, lambda: self._resend("worker_lost"))
        self._pusher = Pusher(redis_url, self._admission, self._waits, self._fail)
        self._replies = Replies(redis_url, self._reply_to, self._resolve, lambda: self._resend("connection_lost"))

    async def start(self) -> None:
        """Start reading replies and watching the workers."""
        self._loop = asyncio.get_running_loop()
        self._watching = asyncio.create_task(_forever(self._watch))
        self._replies.start()

    async def stop(self) -> None:
        """Stop, and fail the calls that still wait."""
        while self._watching is not None and not self._watching.done():
            self._watching.cancel()
            await asyncio.wait([self._watching], timeout=0.1)
        await self._sightings.stop()
        for call in self._pending.values():
            call.fail(Unavailable("the gateway stops: send the request again"))
        await self._pusher.stop()
        await self._replies.stop()
        await self._commands.aclose()

    @property
    def crowded(self) -> bool:
        """Whether `refusal` may have anything to say, to anybody."""
        return self._admission.crowded

    def refusal(self, caller: str) -> Overloaded | None:
        """Why a call of this caller would be refused now, whatever is in it."""
        if problem := self._admission.refusal(caller):
            self._refusals.inc()
        return problem

    async def predict(
        self,
        version_id: str,
        inputs: Sequence[Any],
        parameters: dict[str, Any],
        deadline: float,
        *,
        caller: str = "",
        urgent: bool = False,
        model: str = "",
    ) -> PredictReply:
        """The outputs for `inputs`, in order; `deadline` in Unix seconds. Callers take turns; an `urgent` call's
        line goes to the front. `model` names the version in the worker's metrics.

        What the worker refuses stands in the reply's `error`. Raises `Overloaded`, `DeadlineExceeded` and
        `Unavailable`.
        """
        if not inputs:
            return PredictReply(id="", outputs=[])
        started = time.time()
        requests = [
            PredictRequest(
                id=str(next(self._ids)),
                reply_to=self._reply_to,
                version_id=version_id,
                deadline=deadline,
                inputs=list(inputs[at : at + CHUNK]),
                parameters=parameters,
                caller=caller,
                queued_at=started,
                model=model,
            )
            for at in range(0, len(inputs), CHUNK)
        ]
        try:
            reply = await self._ask(requests, urgent=urgent)
        except ModelwrightError as exc:
            outcome = {Overloaded: "refused", DeadlineExceeded: "expired"}.get(type(exc), "unavailable")
            self._metrics.calls(outcome).inc()
            raise
        self._loop.call_soon(self._count, reply.error or "answered", time.time() - started)
        return reply

    def _count(self, outcome: str, seconds: float) -> None:
        """After the answer is out: the caller waits for that."""
        self._metrics.calls(outcome).inc()
        self._metrics.seconds.observe(seconds)

    async def _ask(self, requests: list[PredictRequest], *, urgent: bool) -> PredictReply:
        first, inputs = requests[0], sum(len(request.inputs) for request in requests)
        if full := self._admission.refusal(first.caller):
            raise full
        if first.deadline <= first.queued_at:
            raise _expired(0.0, inputs)
        if not self._sightings.fresh() and (problem := await self._sightings.problem()):
            raise problem
        push = Push(requests, self._limit, urgent=urgent)
        loop = self._loop
        call = _Call(requests, {}, loop.create_future(), urgent)
        for request in requests:
            self._pending[request.id] = call
        left = first.deadline - time.time()
        timer = loop.call_later(left, lambda: call.fail(_expired(first.deadline - first.queued_at, inputs)))
        self._admission.enter(first.caller, push.tokens)
        try:
            self._pusher.post(push)
            await call.future
            return _merge([call.replies[request.id] for request in requests])
        finally:
            self._admission.leave(first.caller, push.tokens)
            timer.cancel()
            for request in requests:
                del self._pending[request.id]

    async def workers(self, role: str = "inference") -> list[str]:
        """Names of the live workers of a role. Raises `Unavailable` when Valkey does not answer."""
        alive, _ = await self._sightings.of(role)
        return sorted(alive)

    async def waiting(self) -> int:
        """Tokens in the queue, estimated. Raises `Unavailable` when Valkey does not answer."""
        async with Patience(), self._commands.pipeline(transaction=False) as pipe:
            pipe.hget(PREDICT_WAITING, "*")
            pipe.lrange(PREDICT_DIRECT, 0, -1)
            lined, direct = await pipe.execute()
            return int(lined or 0) + sum(map(packed_tokens, filter(None, direct)))

    def _waits(self, push: Push) -> bool:
        call = self._pending.get(push.request_id)
        return call is not None and not call.future.done()

    def _fail(self, push: Push, problem: ModelwrightError) -> None:
        if call := self._pending.get(push.request_id):
            call.fail(problem)

    async def _watch(self) -> None:
        """While calls wait, look for live workers: a frozen Valkey or a lost worker is noticed within two seconds."""
        while True:
            await asyncio.sleep(LIVENESS)
            if self._pending and (problem := await self._sightings.problem()):
                for call in list(self._pending.values()):
                    call.fail(problem)

    def _resend(self, reason: str) -> None:
        """Send again what still waits: who took it, or the queue that held it, is gone."""
        waiting = [
            (request, call)
            for call in {id(call): call for call in self._pending.values()}.values()
            for request in call.requests
            if request.id not in call.replies and not call.future.done()
        ]
        for request, call in waiting:
            self._pusher.post(Push([request], None, urgent=call.urgent))
            self._metrics.resent.inc()
        log.info("predict_resent", reason=reason, requests=len(waiting))

    def _resolve(self, data: bytes) -> None:
        try:
            reply = decode_reply(data)
        except msgspec.DecodeError as exc:
            log.error("predict_reply_unreadable", reason=str(exc))
            return
        call = self._pending.get(reply.id)
        if call is None or call.future.done():  # given up, or answered twice
            return
        call.replies[reply.id] = reply
        if len(call.replies) == len(call.requests):
            call.future.set_result(None)


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """A bug in one call must not end the task that all later ones need."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("predict_task_failed")
            await asyncio.sleep(RESTART)


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
