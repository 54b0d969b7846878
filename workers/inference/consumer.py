"""The data plane of an inference worker: take requests, batch them, run them, reply. No timer when idle.

Two threads play leader and followers: one takes (waits on the doorbell, takes, tokenizes); when nothing runs it
leaves taking to the other and runs what it brought, and whatever the other brings meanwhile, until nothing waits.
So a lone request is answered without a hand-over between threads, and under load one thread tokenizes while the
other runs: a batch is what came in while the last one ran. Versions that are not in memory are loaded by threads of
their own, so a cold load delays no other version. A heartbeat key says that this worker lives, also during a long
batch.

Knows no Celery (`step.py`), no task and no database. A lost Valkey is waited for, with what is in hand kept.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import redis
from prometheus_client import CollectorRegistry

from app.contracts.messages import PredictRequest
from app.core.logging import get_logger
from app.core.metrics import InferenceMetrics
from app.core.settings import Settings
from workers.inference.batcher import Batcher, Waiting
from workers.inference.execution import InHand, Reply, admit, execute, failure
from workers.inference.link import Link
from workers.inference.sessions import LoadedVersion, Locate, ModelLoadFailed, Sessions

TAKE_INPUTS = 64
"""Inputs in one take: 4 ms of tokenizing, so that the runner never waits longer for its first rows."""
LOOKAHEAD = 2
"""Batches' worth of tokens kept tokenized: one to sort by length, one to run next. More would hoard work that
another worker could do."""
BEAT_SECONDS = 2.0
RETRY_SECONDS = 0.25
REPLY_ATTEMPTS = 20
"""With `RETRY_SECONDS` between them: longer than Valkey takes to restart."""

log = get_logger(__name__)


class Consumer:
    """`start` returns at once; `stop` returns when all that was taken is answered."""

    def __init__(
        self,
        redis_url: str,
        settings: Settings,
        locate: Locate,
        *,
        name: str | None = None,
        metrics: InferenceMetrics | None = None,
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._metrics = metrics or InferenceMetrics(CollectorRegistry())
        self._link = Link(redis_url, self.name)
        self._sessions = Sessions(
            locate, limit=settings.session_limit, provider=settings.provider, metrics=self._metrics
        )
        self._lookahead = LOOKAHEAD * settings.batch_tokens
        self._batcher: Batcher[LoadedVersion, InHand] = Batcher(
            settings.batch_tokens, lambda version: version.runtime.padding_limit, time.time
        )
        self._changed = threading.Condition()
        """Guards the batcher and `_running`; notified when rows leave."""
        self._running = False
        self._taking = threading.Lock()
        """Held by the thread that takes; guards the two flags below."""
        self._waits, self._lost = True, False
        self._stopping, self._stopped = threading.Event(), threading.Event()
        # Two: a loader that brings the first rows runs them, and must not keep the next load waiting.
        self._loaders = ThreadPoolExecutor(2, thread_name_prefix="predict-load")
        self._workers = [threading.Thread(target=self._work, name=f"predict-{k}", daemon=True) for k in range(2)]
        self._heart = threading.Thread(target=self._beat, name="predict-beat", daemon=True)

    def start(self) -> None:
        """Start the threads; gateways know this worker on return, or as soon as Valkey is there."""
        # Its thread pool costs a lone text more than it saves (0.21 -> 0.16 ms for all of one request), and the
        # cores are the runtime's. Read by the tokenizers library at each call; an operator's own value stands.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._say_alive()
        for thread in (*self._workers, self._heart):
            thread.start()
        log.info("inference_started", worker=self.name)

    def stop(self, timeout: float = 30.0) -> None:
        """Take no more, answer what was taken, sign off. Gives up waiting after `timeout` seconds."""
        until = time.monotonic() + timeout
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        with contextlib.suppress(redis.RedisError):  # else the wait ends by itself in a second
            self._link.wake()
        for thread in self._workers:
            thread.join(max(0.0, until - time.monotonic()))
        self._loaders.shutdown(wait=time.monotonic() < until)
        self._stopped.set()
        self._heart.join(max(0.0, until - time.monotonic()))
        self._link.close()
        log.info("inference_stopped", worker=self.name, in_time=time.monotonic() < until)

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._taking:
                lead = self._take()
            if lead:
                self._drain()

    def _take(self) -> bool:
        """Take once; True when the caller must run what waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping.is_set() or self._batcher.tokens < self._lookahead)
        if self._stopping.is_set():
            return False
        try:
            if not self._waits and not self._link.wait():
                return False
            self._waits, requests = self._link.take(TAKE_INPUTS)
            if self._lost:
                log.info("inference_reconnected", worker=self.name)
                self._lost = False
        except redis.RedisError as exc:
            if not self._lost:
                log.warning("inference_lost_valkey", worker=self.name, reason=str(exc))
            self._waits = self._lost = True
            self._stopping.wait(RETRY_SECONDS)
            return False
        if not requests:
            return False
        if version := self._sessions.loaded(requests[0].version_id):
            return self._admit(version, requests)
        self._loaders.submit(self._load, requests)
        return False

    def _load(self, requests: list[PredictRequest]) -> None:
        requests = self._live(requests)
        if not requests:
            return
        try:
            version = self._sessions.get(requests[0].version_id)
        except ModelLoadFailed as exc:
            self._reply([failure(request, exc, self._metrics, "model_load_failed") for request in requests])
        else:
            if self._admit(version, requests):
                self._drain()

    def _live(self, requests: list[PredictRequest]) -> list[PredictRequest]:
        """Those whose deadline has not passed; nobody waits for the others."""
        now = time.time()
        live = [request for request in requests if request.deadline > now]
        self._metrics.requests.labels("expired").inc(len(requests) - len(live))
        return live

    def _admit(self, version: LoadedVersion, requests: list[PredictRequest]) -> bool:
        """Tokenize requests of one version and let them wait; True when nobody runs and the caller must."""
        waiting: list[Waiting[LoadedVersion, InHand]] = []
        failed: list[Reply] = []
        for request in self._live(requests):
            try:
                waiting.append(admit(version, request))
            except Exception as exc:  # tokenizing is the first place where a poison input shows
                failed.append(failure(request, exc, self._metrics))
        if failed:
            self._reply(failed)
        with self._changed:
            for entry in waiting:
                self._batcher.add(entry)
            lead = bool(waiting) and not self._running
            self._running = self._running or lead
        return lead

    def _drain(self) -> None:
        """Run batches until nothing waits."""
        while True:
            with self._changed:
                expired = self._batcher.expired
                batch = self._batcher.next()
                self._metrics.requests.labels("expired").inc(self._batcher.expired - expired)
                self._running = batch is not None
                self._changed.notify_all()
            if batch is None:
                return
            try:
                self._reply(execute(batch, self._metrics))
            except Exception:  # a bug must not end the thread that all later batches need
                log.exception("inference_batch_lost", rows=len(batch.rows))

    def _reply(self, replies: list[Reply]) -> None:
        for attempt in range(REPLY_ATTEMPTS):
            try:
                self._link.reply(replies)
                return
            except redis.RedisError as exc:
                log.warning("inference_reply_failed", attempt=attempt, reason=str(exc))
                self._stopped.wait(RETRY_SECONDS)
        # The gateway sends again what it still waits for; nothing of the caller's is lost but time.
        log.error("inference_replies_dropped", replies=len(replies))

    def _say_alive(self) -> None:
        try:
            self._link.beat()
        except redis.RedisError as exc:
            log.warning("inference_beat_failed", worker=self.name, reason=str(exc))

    def _beat(self) -> None:
        """Beat until stopped, or until a thread died of a bug: a worker that cannot answer must not say it can."""
        while all(thread.is_alive() for thread in self._workers) or self._stopping.is_set():
            self._say_alive()
            if self._stopped.wait(BEAT_SECONDS):
                break
        with contextlib.suppress(redis.RedisError):  # else the key expires by itself
            self._link.sign_off()
