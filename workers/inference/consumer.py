"""The data plane of an inference worker: take requests, batch them, run them, reply. No timer when idle.

    taker    waits on the doorbell, takes, tokenizes            -> batcher
    loader   the same for versions that are not in memory yet, so that a cold load delays no other version
    runner   batcher -> run -> replies; a batch is what came in while the last one ran
    beat     a heartbeat key, also during a long batch; it stops when taker or runner is dead

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
REPLY_ATTEMPTS = 20
"""With `RETRY_SECONDS` between them: longer than Valkey takes to restart."""
RETRY_SECONDS = 0.25

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
        """Guards the batcher; notified when rows come or go."""
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._all_taken = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="predict-loader")
        self._threads = [
            threading.Thread(target=target, name=f"predict-{target.__name__.strip('_')}", daemon=True)
            for target in (self._take, self._run, self._beat)
        ]

    def start(self) -> None:
        """Start the threads; gateways know this worker on return, or as soon as Valkey is there."""
        self._say_alive()
        for thread in self._threads:
            thread.start()
        log.info("inference_started", worker=self.name)

    def stop(self, timeout: float = 30.0) -> None:
        """Take no more, answer what was taken, sign off. Gives up waiting after `timeout` seconds."""
        taker, runner, beat = self._threads
        until = time.monotonic() + timeout
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        with contextlib.suppress(redis.RedisError):  # else the wait ends by itself in a second
            self._link.wake()
        taker.join(max(0.0, until - time.monotonic()))
        self._loader.shutdown(wait=True)
        with self._changed:
            self._all_taken = True
            self._changed.notify_all()
        runner.join(max(0.0, until - time.monotonic()))
        self._stopped.set()
        beat.join(max(0.0, until - time.monotonic()))
        self._link.close()
        log.info("inference_stopped", worker=self.name, in_time=not runner.is_alive())

    def _take(self) -> None:
        waits, lost = True, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping.is_set() or self._batcher.tokens < self._lookahead)
            if self._stopping.is_set():
                return
            try:
                if not waits and not self._link.wait():
                    continue
                waits, requests = self._link.take(TAKE_INPUTS)
                if lost:
                    log.info("inference_reconnected", worker=self.name)
                    lost = False
            except redis.RedisError as exc:
                if not lost:
                    log.warning("inference_lost_valkey", worker=self.name, reason=str(exc))
                waits = lost = True
                self._stopping.wait(RETRY_SECONDS)
                continue
            if not requests:
                continue
            if version := self._sessions.loaded(requests[0].version_id):
                self._admit(version, requests)
            else:
                self._loader.submit(self._load, requests)

    def _load(self, requests: list[PredictRequest]) -> None:
        requests = self._live(requests)
        if not requests:
            return
        try:
            version = self._sessions.get(requests[0].version_id)
        except ModelLoadFailed as exc:
            self._reply([failure(request, exc, self._metrics, "model_load_failed") for request in requests])
        else:
            self._admit(version, requests)

    def _live(self, requests: list[PredictRequest]) -> list[PredictRequest]:
        """Those whose deadline has not passed; nobody waits for the others."""
        now = time.time()
        live = [request for request in requests if request.deadline > now]
        self._metrics.requests.labels("expired").inc(len(requests) - len(live))
        return live

    def _admit(self, version: LoadedVersion, requests: list[PredictRequest]) -> None:
        """Tokenize requests of one version and let them wait for the runner; answer those that cannot."""
        waiting: list[Waiting[LoadedVersion, InHand]] = []
        failed: list[Reply] = []
        for request in self._live(requests):
            try:
                waiting.append(admit(version, request))
            except Exception as exc:  # tokenizing is the first place where a poison input shows
                failed.append(failure(request, exc, self._metrics))
        if waiting:
            with self._changed:
                for entry in waiting:
                    self._batcher.add(entry)
                self._changed.notify_all()
        if failed:
            self._reply(failed)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._all_taken or self._batcher.tokens)
                expired = self._batcher.expired
                batch = self._batcher.next()
                self._metrics.requests.labels("expired").inc(self._batcher.expired - expired)
                self._changed.notify_all()
                if batch is None and self._all_taken:
                    return
            if batch is not None:
                self._reply(execute(batch, self._metrics))

    def _reply(self, replies: list[Reply]) -> None:
        for attempt in range(REPLY_ATTEMPTS):
            try:
                self._link.reply(replies)
                return
            except redis.RedisError as exc:
                log.warning("inference_reply_failed", attempt=attempt, reason=str(exc))
                self._stopped.wait(RETRY_SECONDS)
        log.error("inference_replies_dropped", replies=len(replies))

    def _say_alive(self) -> None:
        try:
            self._link.beat()
        except redis.RedisError as exc:
            log.warning("inference_beat_failed", worker=self.name, reason=str(exc))

    def _beat(self) -> None:
        taker, runner, _ = self._threads
        while taker.is_alive() or self._stopping.is_set():
            if not runner.is_alive():
                break
            self._say_alive()
            if self._stopped.wait(BEAT_SECONDS):
                break
        try:
            self._link.sign_off()
        except redis.RedisError:
            return  # the key expires by itself
