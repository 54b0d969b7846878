"""The edge of every job: claim -> run a child -> finish, with a heartbeat between. Imports no torch.

Every write carries the fence of this attempt. When a write finds that the fence moved on, somebody else owns the job
and this worker stops at once without another word.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import structlog

from app.contracts.training import Evaluation, Failed, Finished, Note, Phase, Resolved, Step
from app.core.errors import ModelwrightError, Unavailable
from app.core.logging import get_logger
from app.registry.jobs import JobRepository
from app.registry.tables import JobRow
from workers.child import Child
from workers.context import WorkerContext
from workers.preparation import build_spec
from workers.publication import publish, stage

log = get_logger(__name__)

stopping = Event()
"""Set when this worker shuts down: running jobs are handed back."""

# Export and parity after the last step, measured 6-10 s for MiniLM; keeps the ETA from promising zero.
_EXPORT_SECONDS = 10.0


@dataclass
class _Ledger:
    """What the child has said and the database does not know yet; survives a database outage."""

    values: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    finished: Finished | None = None
    failed: Failed | None = None
    total_steps: int = 0
    training_since: float = 0.0

    def note(self, level: str, message: str, data: dict[str, Any] | None = None, kind: str = "message") -> None:
        self.events.append({"level": level, "type": kind, "message": message, "data": data})

    def add(self, message: Any) -> None:
        """Take one message of the child."""
        match message:
            case Phase(phase=phase):
                self.values["phase"] = phase
                self.note("info", f"Phase: {phase}")
                if phase == "training":
                    self.training_since = time.monotonic()
            case Resolved():
                self.total_steps = message.total_steps
                self.values["resolved"] = message.model_dump(exclude={"kind"})
                self.note(
                    "info",
                    f"Training {message.total_steps} steps on {message.device}",
                    self.values["resolved"],
                )
            case Step():
                self._step(message)
            case Evaluation():
                data = {
                    "step": message.step,
                    "epoch": message.epoch,
                    "split": message.split,
                    **message.metrics,
                }
                shown = ", ".join(f"{k} {v:.4f}" for k, v in list(message.metrics.items())[:4])
                self.note("info", f"Step {message.step}: {message.split} {shown}", data, "metrics")
                self.progress |= {"metrics": {message.split: message.metrics}}
            case Note():
                self.note(message.level, message.message, message.data)
            case Finished():
                self.finished = message
            case Failed():
                self.failed = message

    def _step(self, step: Step) -> None:
        total = max(self.total_steps, step.step)
        data = step.model_dump(exclude={"kind"}) | {"total_steps": total}
        self.note("info", f"Step {step.step}/{total}: training loss={step.train_loss:.4f}", data, "metrics")
        elapsed = time.monotonic() - self.training_since
        left = elapsed / step.step * (total - step.step) + _EXPORT_SECONDS
        self.progress |= data | {"percent": round(99.0 * step.step / total, 1), "eta_seconds": round(left)}
        self.values["estimated_finish"] = datetime.now(UTC) + timedelta(seconds=left)
        self.values["trained_tokens"] = step.tokens

    def take(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What to write now. Give it back with `put_back` when the write fails."""
        values, events = self.values, self.events
        self.values, self.events = {}, []
        return values | {"progress": dict(self.progress)} if self.progress else values, events

    def put_back(self, values: dict[str, Any], events: list[dict[str, Any]]) -> None:
        self.values, self.events = values | self.values, events + self.events


class _FenceLost(Exception):
    """Another attempt owns the job."""


def run(job_id: str, context: WorkerContext) -> None:
    """Run the job if it is there to be run; return when this attempt is over, whatever its end."""
    owner = f"{socket.gethostname()}:{os.getpid()}"
    with context.database.unit_of_work() as session:
        job = JobRepository(session).claim(job_id, owner, context.settings.lease_seconds)
    if job is None:
        log.info("nothing_to_claim", job_id=job_id)
        return
    with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt, fence=job.fence):
        folder = context.settings.home.absolute() / "work" / job.id / str(job.fence)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _attempt(job, folder, context)
        except _FenceLost:
            log.warning("fence_moved_on")
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)


def _attempt(job: JobRow, folder: Path, context: WorkerContext) -> None:
    ledger = _Ledger()
    ledger.note("info", f"Attempt {job.attempt} of {job.max_attempts} started")
    try:
        spec = build_spec(job, folder, context)
    except Unavailable:
        raise  # the database went away: the lease runs out, and the next attempt finds it back
    except ModelwrightError as exc:
        ledger.failed = Failed(kind="failed", code="base_model", message=exc.message, param=exc.param)
        _fail(job, ledger, context)
        return
    log.info("job_started")
    child = Child(spec, folder)
    try:
        code = None
        while code is None:
            code = child.wait(context.settings.heartbeat_seconds)
            for message in child.drain():
                ledger.add(message)
            if code is None and _beat(job, ledger, context):
                _end(job, ledger, context, "cancelled", "The job was cancelled")
                return
            if code is None and stopping.is_set():
                child.stop()
                _hand_back(job, ledger, context)
                return
    finally:
        child.stop()
    if ledger.finished:
        _beat(job, ledger, context)  # publishing a large artifact must not outlive the lease
        staged, finished = stage(job, folder, context), ledger.finished
        if _insist(lambda: publish(job, spec, finished, staged, context), context):
            log.info("job_succeeded")
    elif ledger.failed:
        _fail(job, ledger, context)
    else:
        log.error("child_lost", exit_code=code, output=child.last_words())
        _retry_or_fail(job, ledger, context, code)


def _beat(job: JobRow, ledger: _Ledger, context: WorkerContext) -> bool:
    """Renew the lease and write what is known. Returns whether a cancel waits; raises when the fence moved on."""
    values, events = ledger.take()
    try:
        with context.database.unit_of_work() as session:
            jobs = JobRepository(session)
            cancel = jobs.beat(job.id, job.fence, context.settings.lease_seconds, values)
            if cancel is None:
                raise _FenceLost
            jobs.add_events(job.id, events)
    except Unavailable as exc:
        # Training goes on without the database; the next heartbeat says it all.
        log.warning("heartbeat_failed", reason=exc.message)
        ledger.put_back(values, events)
        return False
    return cancel


def _end(job: JobRow, ledger: _Ledger, context: WorkerContext, state: str, message: str, **values: Any) -> None:
    ledger.note("error" if state == "failed" else "info", message)
    pending, events = ledger.take()
    pending.pop("phase", None)

    def write() -> None:
        with context.database.unit_of_work() as session:
            jobs = JobRepository(session)
            if not jobs.end(job.id, job.fence, state, **pending, **values):
                raise _FenceLost
            jobs.add_events(job.id, events)

    if _insist(write, context):
        log.info("job_ended", state=state)


def _insist(write: Callable[[], None], context: WorkerContext) -> bool:
    """Write the end of a job, waiting for a database that is away. False when this worker shuts down first: the
    lease runs out, and another worker takes over."""
    while True:
        try:
            write()
        except Unavailable as exc:
            log.warning("end_not_written", reason=exc.message)
            if stopping.wait(context.settings.heartbeat_seconds):
                return False
        else:
            return True


def _fail(job: JobRow, ledger: _Ledger, context: WorkerContext) -> None:
    assert ledger.failed is not None
    error = {"code": ledger.failed.code, "message": ledger.failed.message, "param": ledger.failed.param}
    _end(job, ledger, context, "failed", ledger.failed.message, error=error)


def _retry_or_fail(job: JobRow, ledger: _Ledger, context: WorkerContext, code: int) -> None:
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    if job.attempt < job.max_attempts:
        ledger.note("warn", f"The training process ended without a word ({reason}); the job goes back to the queue")
        _hand_back(job, ledger, context, counted=True)
        return
    message = f"the training process was lost {job.attempt} times ({reason}): see the trainer's log"
    _end(
        job,
        ledger,
        context,
        "failed",
        message,
        error={"code": "worker_lost", "message": message, "param": None},
    )


def _hand_back(job: JobRow, ledger: _Ledger, context: WorkerContext, *, counted: bool = False) -> None:
    if not counted:
        ledger.note("info", "The worker shuts down; the job goes back to the queue")
    _, events = ledger.take()
    with context.database.unit_of_work() as session:
        jobs = JobRepository(session)
        if jobs.hand_back(job.id, job.fence, counted=counted):
            jobs.add_events(job.id, events)
