"""The data plane of an inference worker: take requests, batch them, run them, reply. No timer when idle.

One thread a lane, all alike: take what waits, tokenize it, pick a batch, run it, reply. While one takes or tokenizes
the others run, so a batch is what came in while the last ones ran, and a lone request is answered without a hand-over
between threads. Only one takes at a time; the others run what it brought. Versions that are not in memory are loaded
by threads of their own, so a cold load delays no other version. A heartbeat key says that this worker lives, also
during a long batch.

Knows no Celery (`step.py`), no task and no database. A lost Valkey is waited for, with what is in hand kept.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import redis
from prometheus_client import CollectorRegistry

from app.contracts.messages import PredictRequest
from app.contracts.placement import Desired
from app.core.logging import get_logger
from app.core.metrics import InferenceMetrics
from app.core.settings import Settings
from workers.inference.batcher import LEAST_TOKENS, Batch, Batcher, Batching, Waiting
from workers.inference.execution import InHand, Reply, admit, execute, failure
from workers.inference.link import Link
from workers.inference.runtime import LANES, ON_CPU
from workers.inference.sessions import LoadedVersion, Locate, ModelLoadFailed, Sessions
from workers.inference.warm import Warm

LOOKAHEAD = 2
"""Batches' worth of tokens for each lane, kept tokenized: one to sort by length, one to run next. More would hoard work
that another worker could do."""
BEAT_SECONDS = 2.0
RETRY_SECONDS = 0.25
REPLY_ATTEMPTS = 20
"""With `RETRY_SECONDS` between them: longer than Valkey takes to restart."""

log = get_logger(__name__)

Found = tuple[Batch[LoadedVersion, InHand], bool]


class Consumer:
    """`start` returns at once; `stop` returns when all that was taken is answered."""

    def __init__(
        self,
        redis_url: str,
        settings: Settings,
        locate: Locate,
        *,
        desired: Callable[[], Desired] | None = None,
        name: str | None = None,
        metrics: InferenceMetrics | None = None,
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._metrics = metrics or InferenceMetrics(CollectorRegistry())
        self._link = Link(redis_url, self.name, meanwhile=self._metrics.later.settle)
        self._sessions = Sessions(
            locate,
            budget=settings.session_memory_bytes,
            provider=settings.provider,
            remembered=settings.home / "providers.json",
            metrics=self._metrics,
        )
        self._warm = Warm(self._sessions, desired) if desired else None
        self._most_tokens = settings.batch_tokens
        self._batching = cache(self._within_limit)
        self._lookahead = LOOKAHEAD * LANES * self._batching(ON_CPU).tokens
        self._batcher: Batcher[LoadedVersion, InHand] = Batcher(self._suits, time.time)
        self._changed = threading.Condition()
        """Guards the batcher and the fields below; notified when any of them changed."""
        self._taking = False
        self._running = 0
        """Batches that run now."""
        self._short = False
        """One of them is alone, on all cores, and over in milliseconds: it is faster when the other lanes sleep."""
        self._lost = False
        """Valkey; belongs to the thread that takes."""
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._loaders = ThreadPoolExecutor(2, thread_name_prefix="predict-load")
        # Two at least: one tokenizes while the other's batch is on a device.
        lanes = max(2, LANES)
        self._workers = [threading.Thread(target=self._work, name=f"predict-{k}", daemon=True) for k in range(lanes)]
        self._heart = threading.Thread(target=self._beat, name="predict-beat", daemon=True)

    def _within_limit(self, suits: Batching) -> Batching:
        """What suits an engine, within what the operator allows."""
        return replace(suits, tokens=min(suits.tokens, self._most_tokens or suits.tokens))

    def _suits(self, version: LoadedVersion) -> Batching:
        suits = self._batching(version.runtime.batching)
        rows = self._sessions.max_batch_size.get(version.version_id)
        return replace(suits, rows=rows) if rows else suits

    def start(self) -> None:
        """Start the threads; gateways know this worker on return, or as soon as Valkey is there."""
        # Its thread pool costs a lone text more than it saves (0.21 -> 0.16 ms for all of one request), and the
        # cores are the runtime's. Read by the tokenizers library at each call; an operator's own value stands.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._say_alive()
        for thread in (*self._workers, self._heart):
            thread.start()
        if self._warm:
            self._warm.start()
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
        if self._warm:
            self._warm.stop(max(0.0, until - time.monotonic()))
        self._loaders.shutdown(wait=time.monotonic() < until)
        while found := self._pick():  # what a load brought after the last lane had left
            self._reply(self._execute(*found))
        self._stopped.set()
        self._heart.join(max(0.0, until - time.monotonic()))
        self._link.close()
        log.info("inference_stopped", worker=self.name, in_time=time.monotonic() < until)

    def _work(self) -> None:
        """One lane."""
        replies: list[Reply] = []
        while found := self._next(replies):
            replies = self._execute(*found)

    def _next(self, replies: list[Reply]) -> Found | None:
        """The next batch; takes what waits before it picks one, and sends `replies` with the same command.

        None when there is nothing left and never will be.
        """
        while True:
            with self._changed:
                if not replies:
                    self._changed.wait_for(lambda: self._may_take() or self._batcher.tokens or self._stopping.is_set())
                take = self._may_take()
                self._taking, room = self._taking or take, self._room()
                # Beside a lane that runs, replies go out with a look at what waits; it may be a while until some comes.
                idle = not self._batcher.tokens and not (replies and self._running)
            if take:
                try:
                    self._take(room, replies, wait=idle)
                except Exception:  # a bug must not end the thread that later requests need
                    log.exception("inference_take_failed")
            elif replies:
                self._reply(replies)
            replies = []
            with self._changed:
                self._taking = self._taking and not take
                found = self._pick()
                if self._batcher.tokens or not self._short:
                    self._changed.notify_all()
                if found or (not take and self._stopping.is_set()):
                    return found

    def _room(self) -> int:
        return self._lookahead - self._batcher.tokens

    def _may_take(self) -> bool:
        return not (self._taking or self._short or self._stopping.is_set()) and self._room() > 0

    def _pick(self) -> Found | None:
        """A batch, and whether it is alone: nothing else runs or waits."""
        with self._changed:
            expired = self._batcher.expired
            batch = self._batcher.next()
            if self._batcher.expired > expired:
                self._metrics.expired.inc(self._batcher.expired - expired)
            if batch is None:
                return None
            alone = not self._running and not self._batcher.tokens
            self._short = alone and sum(waiting.lengths[i] for waiting, i in batch.rows) <= LEAST_TOKENS
            self._running += 1
            return batch, alone

    def _execute(self, batch: Batch[LoadedVersion, InHand], alone: bool) -> list[Reply]:
        try:
            return execute(batch, self._metrics, alone=alone)
        except Exception:  # a bug must not end the thread that later batches need
            log.exception("inference_batch_lost", rows=len(batch.rows))
            return []
        finally:
            with self._changed:
                self._running -= 1
                self._short = self._short and not alone

    def _take(self, tokens: int, replies: list[Reply], *, wait: bool) -> None:
        """Take requests of about so many tokens, and let them wait here or for their version's load."""
        try:
            if wait:
                if (found := self._link.wait(replies)) is None:
                    return
                requests = found or self._link.take(tokens)
            else:
                with self._metrics.reply_seconds.time() if replies else contextlib.nullcontext():
                    requests = self._link.take(tokens, replies)
            if self._lost:
                log.info("inference_reconnected", worker=self.name)
                self._lost = False
        except redis.RedisError as exc:
            if not self._lost:
                log.warning("inference_lost_valkey", worker=self.name, reason=str(exc))
            self._lost = True
            if replies:
                self._reply(replies)  # perhaps for the second time, which gateways overlook
            else:
                self._stopping.wait(RETRY_SECONDS)
            return
        now = time.time()
        of_version: dict[str, list[PredictRequest]] = defaultdict(list)
        for request in requests:
            waited = max(0.0, now - request.queued_at)
            self._metrics.later(self._metrics.of(request.model).queue_seconds.observe, waited)
            of_version[request.version_id].append(request)
        for version_id, found in of_version.items():
            if version := self._sessions.loaded(version_id):
                self._admit(version, found)
            else:
                self._loaders.submit(self._load, found)

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
        if len(live) < len(requests):
            self._metrics.expired.inc(len(requests) - len(live))
        return live

    def _admit(self, version: LoadedVersion, requests: list[PredictRequest]) -> None:
        """Tokenize requests of one version and let them wait."""
        waiting: list[Waiting[LoadedVersion, InHand]] = []
        failed: list[Reply] = []
        for request in self._live(requests):
            try:
                waiting.append(admit(version, request, self._metrics))
            except Exception as exc:  # tokenizing is the first place where a poison input shows
                failed.append(failure(request, exc, self._metrics))
        if failed:
            self._reply(failed)
        suits = self._batching(version.runtime.batching)
        with self._changed:
            self._lookahead = max(self._lookahead, LOOKAHEAD * suits.lanes * suits.tokens)
            for entry in waiting:
                self._batcher.add(entry)
            self._changed.notify_all()

    def _reply(self, replies: list[Reply]) -> None:
        for attempt in range(REPLY_ATTEMPTS):
            try:
                with self._metrics.reply_seconds.time():
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
