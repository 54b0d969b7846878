"""The edge of every job: claim -> run a child -> finish, with a heartbeat between. Imports no torch.

Every write carries the fence of this attempt. When a write finds that the fence moved on, somebody else owns the job
and this worker stops at once without another word.
"""

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import structlog

from app.contracts.training import Failed, Finished, TrainingSpec
from app.core.errors import ModelwrightError, Unavailable
from app.core.logging import get_logger
from app.registry.checkpoints import CheckpointRepository
from app.registry.jobs import JobRepository
from app.registry.leases import LeaseRepository, Orders
from app.registry.tables import JobRow
from model_store.verify import ArtifactCorrupt
from workers import checkpoints
from workers.checkpoints import FenceLost
from workers.child import STOPPED, Child
from workers.context import WorkerContext
from workers.ledger import Ledger
from workers.outcomes import Ending, judge, oom_kills
from workers.preparation import build_spec
from workers.publication import publish, stage

log = get_logger(__name__)

stopping = Event()
"""Set when this worker shuts down: running jobs save themselves and are handed back."""

POLL_SECONDS = 0.1
"""Between looks at the child and at `stopping`; the database is written to each `heartbeat_seconds`."""
STOP_SECONDS = 20.0
"""For the present step and a checkpoint, after a child was asked to stop; then it is killed."""


def run_waiting(context: WorkerContext, kind: str = "training") -> int:
    """Run jobs of a kind until none waits; returns how many. One bell may stand for many."""
    count = 0
    while not stopping.is_set() and (job := claim(context, kind)) is not None:
        run(job, context)
        count += 1
    return count


def claim(context: WorkerContext, kind: str = "training") -> JobRow | None:
    """The job whose turn it is, now this worker's; None when there is none, or no database."""
    settings = context.settings
    try:
        with context.database.unit_of_work() as session:
            return LeaseRepository(session).claim_next(
                f"{socket.gethostname()}:{os.getpid()}",
                settings.lease_seconds,
                kind=kind,
                max_trainings=settings.max_trainings,
            )
    except Unavailable as exc:  # the reconciler rings again once it is back
        log.warning("claim_failed", reason=exc.message)
        return None


def run(job: JobRow, context: WorkerContext) -> None:
    """Run a claimed job; return when this attempt is over, whatever its end."""
    with structlog.contextvars.bound_contextvars(job_id=job.id, attempt=job.attempt, fence=job.fence):
        folder = context.settings.home.absolute() / "work" / f"{os.getpid()}-{job.id}-{job.fence}"
        attempt = _Attempt(job, folder, context)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            attempt.run()
        except FenceLost:
            log.warning("fence_moved_on")
        except Unavailable as exc:  # the lease runs out, and the next attempt finds the database back
            log.warning("attempt_given_up", reason=exc.message)
        except (OSError, ArtifactCorrupt) as exc:
            log.exception("attempt_failed")
            attempt.failed_here(exc)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _Attempt:
    """One run of one job."""

    def __init__(self, job: JobRow, folder: Path, context: WorkerContext) -> None:
        self.job, self.folder, self.context = job, folder, context
        self.ledger = Ledger()

    def run(self) -> None:
        job, ledger = self.job, self.ledger
        ledger.note("info", f"Attempt {job.attempt} started")
        try:
            checkpoints.adopt(job, ledger, self.context)
            spec = build_spec(job, self.folder, ledger, self.context)
        except Unavailable:
            raise
        except ModelwrightError as exc:
            corrupt = isinstance(exc, checkpoints.CheckpointCorrupt)
            ledger.failed = Failed(
                code="checkpoint_corrupt" if corrupt else "base_model", message=exc.message, param=exc.param
            )
            self._judge(Ending(1, ledger.failed))
            return
        log.info("job_started", resume_step=ledger.saved_step)
        kills = oom_kills()
        child = Child(spec, self.folder)
        try:
            exit_code, orders, hung = self._watch(child)
        finally:
            child.kill()
        if orders.cancel:
            self._end("cancelled", "The job was cancelled")
        elif ledger.finished:
            self._publish(spec, ledger.finished)
        elif exit_code == STOPPED or (stopping.is_set() and ledger.failed is None):
            self._hand_back("The worker shuts down" if stopping.is_set() else "The training process was stopped")
        else:
            if ledger.failed is None:
                log.error("child_lost", exit_code=exit_code, output=child.last_words())
            self._judge(Ending(exit_code, ledger.failed, hung, self.context.settings.hang_seconds, oom_kills() > kills))

    def _watch(self, child: Child) -> tuple[int, Orders, bool]:
        """Until the child is gone: its exit code, what was ordered meanwhile, and whether it hung."""
        settings, orders = self.context.settings, Orders(cancel=False, pause=False)
        beat_at, asked_at, hung = time.monotonic(), None, False
        while True:
            code = child.wait(POLL_SECONDS)
            for message in child.drain():
                self.ledger.add(message)
            self._register()
            now = time.monotonic()
            if code is not None:
                return code, orders, hung
            if now >= beat_at:
                orders, beat_at = self._beat(), now + settings.heartbeat_seconds
            if orders.cancel:
                child.kill()
            elif asked_at is not None:
                if now - asked_at > STOP_SECONDS:
                    child.kill()
            elif orders.pause or stopping.is_set():
                child.ask_to_stop()
                asked_at = now
            elif now - self.ledger.heard > settings.hang_seconds:
                child.kill()
                hung = True

    def _register(self) -> None:
        """Rows for what the child has sealed; without a database they wait."""
        while self.ledger.checkpoints:
            try:
                checkpoints.register(self.job, self.ledger.checkpoints[0], self.ledger, self.context)
            except Unavailable as exc:
                log.warning("checkpoint_not_registered", reason=exc.message)
                return
            self.ledger.checkpoints.pop(0)

    def _beat(self) -> Orders:
        """Renew the lease and write what is known. Raises `FenceLost`."""
        values, events = self.ledger.take()
        try:
            with self.context.database.unit_of_work() as session:
                orders = LeaseRepository(session).beat(
                    self.job.id, self.job.fence, self.context.settings.lease_seconds, values
                )
                if orders is None:
                    raise FenceLost
                JobRepository(session).add_events(self.job.id, events)
        except Unavailable as exc:
            # Training goes on without the database; the next heartbeat says it all.
            log.warning("heartbeat_failed", reason=exc.message)
            self.ledger.put_back(values, events)
            return Orders(cancel=False, pause=False)
        return orders

    def _publish(self, spec: TrainingSpec, finished: Finished) -> None:
        self._beat()  # publishing a large artifact must not outlive the lease
        staged = stage(self.job, self.folder, self.context)
        if self._insist(lambda: publish(self.job, spec, finished, staged, self.context)):
            log.info("job_succeeded")

    def _judge(self, ending: Ending) -> None:
        """Try again or fail, as `outcomes.py` says."""
        resolved = self.ledger.values.get("resolved") or self.job.resolved or {}
        outcome = judge(
            ending,
            failures=0 if self.ledger.progressed or self.ledger.checkpoints else self.job.failures,
            max_attempts=self.job.max_attempts,
            halvings=self.job.batch_halvings,
            batch_size=resolved.get("hyperparameters", {}).get("batch_size"),
        )
        if outcome.retry:
            self._hand_back(
                outcome.message,
                counted=True,
                level="warn",
                after_seconds=outcome.after_seconds,
                halve_batch=outcome.halve_batch,
            )
        else:
            error = {"code": outcome.code, "message": outcome.message, "param": outcome.param}
            self._end("failed", outcome.message, error=error)

    def failed_here(self, exc: Exception) -> None:
        """This worker's own disk or the store is at fault, not the child."""
        full = getattr(exc, "errno", None) == errno.ENOSPC
        message = f"the trainer cannot write what it made ({exc}): check the space and the health of its disks"
        self._judge(Ending(1, Failed(code="disk_full" if full else "worker_error", message=message)))

    def _end(self, state: str, message: str, **values: Any) -> None:
        self.ledger.note("error" if state == "failed" else "info", message)
        pending, events = self.ledger.take()
        pending.pop("phase", None)

        def write() -> None:
            with self.context.database.unit_of_work() as session:
                if not LeaseRepository(session).end(self.job.id, self.job.fence, state, **pending, **values):
                    raise FenceLost
                JobRepository(session).add_events(self.job.id, events)

        if self._insist(write):
            log.info("job_ended", state=state)

    def _hand_back(self, message: str, *, counted: bool = False, level: str = "info", **how: Any) -> None:
        """To the queue, or to rest: a paused job's newest checkpoint is made servable."""
        self.ledger.note(level, message)
        pending, events = self.ledger.take()
        pending.pop("phase", None)

        def write() -> None:
            with self.context.database.unit_of_work() as session:
                leases, rows = LeaseRepository(session), CheckpointRepository(session)
                if pending and not leases.set(self.job.id, self.job.fence, **pending):
                    raise FenceLost
                state = leases.hand_back(self.job.id, self.job.fence, counted=counted, **how)
                if state is None:
                    raise FenceLost
                if state == "paused" and (saved := rows.of(self.job.id)):
                    rows.export(saved[0], rows.source_of(saved[0]))
                JobRepository(session).add_events(self.job.id, events)
            log.info("job_handed_back", state=state)

        self._insist(write)

    def _insist(self, write: Callable[[], None]) -> bool:
        """Write the end of an attempt, waiting for a database that is away. False when this worker shuts down first:
        the lease runs out, and another worker takes over."""
        while True:
            try:
                write()
            except Unavailable as exc:
                log.warning("end_not_written", reason=exc.message)
                if stopping.wait(self.context.settings.heartbeat_seconds):
                    return False
            else:
                return True
