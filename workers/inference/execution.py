"""Runs one batch and turns it into replies. Knows no thread, no queue and no task.

A batch that fails is run again request by request, so a poison input fails its own request and no other.
"""

import time
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from app.contracts.messages import PredictReply, PredictRequest
from app.core.logging import get_logger
from app.core.metrics import InferenceMetrics
from workers.codecs.text import pad
from workers.inference.batcher import Batch, Row, Waiting
from workers.inference.runtime import Float32
from workers.inference.sessions import LoadedVersion
from workers.inference.tasks.base import BadInput, Prepared

log = get_logger(__name__)

Reply = tuple[str, PredictReply]
"""The reply list it belongs on, and the reply."""


@dataclass(eq=False, slots=True)
class InHand:
    """A request that was taken: its rows' logits come in, batch by batch, from several lanes at once."""

    request: PredictRequest
    prepared: Prepared
    logits: list[Float32 | None]
    missing: int
    lock: Lock = field(default_factory=Lock)

    def complete(self, rows: int) -> bool:
        """Count rows that came in; True for the one caller that brought the last."""
        with self.lock:
            self.missing -= rows
            return self.missing == 0


InHandRow = Row[LoadedVersion, InHand]


def admit(version: LoadedVersion, request: PredictRequest, metrics: InferenceMetrics) -> Waiting[LoadedVersion, InHand]:
    """Tokenize a request. Raises what its task raises, `BadInput` when an input cannot be read."""
    started = time.perf_counter()
    prepared = version.prepare(version.codec, version.serving, request.inputs, request.parameters)
    # A tokenizer without special tokens makes no token of an empty text; the graph needs one.
    rows = [row or [version.serving.pad_token_id] for row in prepared.rows]
    metrics.later(metrics.of(request.model).tokenize_seconds.observe, time.perf_counter() - started)
    hand = InHand(request, Prepared(rows, prepared.finish), [None] * len(rows), len(rows))
    return Waiting(version, [len(row) for row in rows], request.deadline, hand)


def execute(batch: Batch[LoadedVersion, InHand], metrics: InferenceMetrics, *, alone: bool = False) -> list[Reply]:
    """Run a batch; returns the replies of the requests that it completed or that failed in it.

    `alone` says that no other batch runs beside it.
    """
    requests = {id(waiting): waiting for waiting, _ in batch.rows}
    rows = dict.fromkeys(requests, 0)
    for waiting, _ in batch.rows:
        rows[id(waiting)] += 1
    failed: list[Reply] = []
    try:
        _run(batch.version, batch.rows, metrics, alone=alone)
    except Exception as exc:  # a runtime may raise anything
        for waiting in requests.values():
            rows_of_it = [row for row in batch.rows if row[0] is waiting]
            if own := exc if len(requests) == 1 else _try(batch.version, rows_of_it, metrics):
                waiting.dropped = True
                failed.append(failure(waiting.request.request, own, metrics))
    done = [w for key, w in requests.items() if not w.dropped and w.request.complete(rows[key])]
    return failed + [_finish(waiting.request, len(batch.rows), metrics) for waiting in done]


def _run(version: LoadedVersion, rows: list[InHandRow], metrics: InferenceMetrics, *, alone: bool = False) -> None:
    ids, mask = pad([w.request.prepared.rows[i] for w, i in rows], version.serving.pad_token_id)
    started = time.perf_counter()
    logits = version.runtime.run(ids, mask, alone=alone)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model returned logits that are not finite")
    seconds, real = time.perf_counter() - started, sum(w.lengths[i] for w, i in rows)
    metrics.later(metrics.of(rows[0][0].request.request.model).ran, seconds, len(rows), real, mask.size)
    for (waiting, i), values in zip(rows, logits, strict=True):
        waiting.request.logits[i] = values if values.ndim == 1 else values[: waiting.lengths[i]]


def _try(version: LoadedVersion, rows: list[InHandRow], metrics: InferenceMetrics) -> Exception | None:
    try:
        _run(version, rows, metrics)
    except Exception as exc:  # see `execute`
        return exc
    return None


def _finish(hand: InHand, batch_size: int, metrics: InferenceMetrics) -> Reply:
    request = hand.request
    logits = [values for values in hand.logits if values is not None]
    try:
        outputs = hand.prepared.finish(logits)
    except Exception as exc:  # one request's outputs are no other's business
        return failure(request, exc, metrics)
    metrics.later(metrics.answered.inc)
    tokens = sum(map(len, hand.prepared.rows))
    return request.reply_to, PredictReply(request.id, outputs, tokens, batch_size)


def failure(request: PredictRequest, exc: Exception, metrics: InferenceMetrics, code: str = "internal_error") -> Reply:
    """The reply that says why `request` has no outputs."""
    param = None
    if isinstance(exc, BadInput):
        code, param = "invalid_input", f"inputs[{exc.index}]"
    log.warning("predict_failed", version_id=request.version_id, code=code, reason=f"{type(exc).__name__}: {exc}")
    metrics.requests.labels(code).inc()
    message = str(exc) if code != "internal_error" else f"the model failed on this input: {exc}"
    return request.reply_to, PredictReply(request.id, error=code, message=message, param=param)
