"""Removes bytes that nobody needs: expired, deleted, or left behind by who never wrote the row. No thread, no timer.

`app/registry/sweep.py` decides by rows. Bytes without a row go by age, and only where no row can come any more. What
the store holds is listed first and the rows are read then, so that a row written meanwhile saves its bytes. Removing
is idempotent: a sweep that dies is simply followed by the next one.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

from app.core.logging import get_logger
from app.registry.sweep import JobStand, SweepRepository
from model_store.store import Entry
from workers.context import WorkerContext

log = get_logger(__name__)

_STAGED_SECONDS = 24 * 3600  # a write that pauses for so long, an upload's perhaps, is dead


def sweep_once(context: WorkerContext) -> dict[str, int] | None:
    """Sweep once and say how much of what; None while another worker sweeps. Raises `Unavailable`."""
    with context.database.unit_of_work() as session:  # holds the lock, reads nothing
        return dict(_Sweep(context).run()) if SweepRepository(session).lead() else None


class _Sweep:
    def __init__(self, context: WorkerContext) -> None:
        self._context, self._database, self._store = context, context.database, context.store
        self._done: Counter[str] = Counter()

    def run(self) -> Counter[str]:
        with self._database.unit_of_work() as session:
            marked = SweepRepository(session).mark(self._context.settings.checkpoint_retention_days)
        self._done.update({f"{what}_marked": count for what, count in marked.items()})
        self._plain("files", SweepRepository.files)
        self._plain("uploads", SweepRepository.uploads)
        self._plain("batches", SweepRepository.batches)
        self._checkpoints()
        self._versions()
        self._artifacts()
        self._staged()
        done = +self._done  # without zeros
        if done:
            log.info("swept", **done)
        return done

    def _plain(self, area: str, ask: Callable[[SweepRepository, Sequence[str]], dict[str, bool]]) -> None:
        """Entries that bear the id of their row."""
        entries = {entry.key.rpartition("/")[2]: entry for entry in self._store.entries(area)}
        with self._database.unit_of_work() as session:
            rows = SweepRepository(session)
            may_go, cutoff = ask(rows, list(entries)), rows.before_any_claim()
        if self._is_ours(area, entries, may_go):
            self._remove(area, [e for name, e in entries.items() if may_go.get(name, e.modified < cutoff)])

    def _checkpoints(self) -> None:
        attempts = self._attempts("checkpoints")
        entries = [(attempt, entry) for attempt in attempts for entry in self._store.entries(attempt.key)]
        with self._database.unit_of_work() as session:
            rows = SweepRepository(session)
            may_go, jobs = rows.checkpoints([e.key for _, e in entries]), rows.jobs(a.job_id for a in attempts)
            cutoff = rows.before_grace()

        def orphan(attempt: _Attempt, entry: Entry) -> bool:
            job = jobs.get(attempt.job_id)
            adoptable = job is not None and not job.ended and attempt.fence > job.adopted_fence
            return entry.modified < cutoff and not adoptable

        if self._is_ours("checkpoints", attempts, jobs):
            doomed = [e for attempt, e in entries if may_go.get(e.key, orphan(attempt, e))]
            self._remove("checkpoints", doomed)
            self._tidy(attempts, jobs)

    def _versions(self) -> None:
        with self._database.unit_of_work() as session:
            keys = SweepRepository(session).deleted_artifacts()
        for key in keys:
            self._remove("versions", [Entry(key, 0.0)])
            if not self._store.path(key).exists():
                with self._database.unit_of_work() as session:
                    SweepRepository(session).collected(key)

    def _artifacts(self) -> None:
        """Of attempts that lost their fence or died before the row: only a running one may still write it."""
        attempts = self._attempts("artifacts")
        with self._database.unit_of_work() as session:
            rows = SweepRepository(session)
            named, jobs = rows.named_artifacts([a.key for a in attempts]), rows.jobs(a.job_id for a in attempts)
            cutoff = rows.before_grace()
        if self._is_ours("artifacts", attempts, jobs):
            alive = {(job_id, job.running_fence) for job_id, job in jobs.items()}
            left = [a for a in attempts if a.key not in named and (a.job_id, a.fence) not in alive]
            self._remove("artifacts", [a.entry for a in left if a.entry.modified < cutoff])
            self._tidy(attempts, jobs)

    def _staged(self) -> None:
        with self._database.unit_of_work() as session:
            cutoff = SweepRepository(session).before_grace() - _STAGED_SECONDS
        self._remove("staged", [entry for entry in self._store.entries("tmp") if entry.modified < cutoff])

    def _attempts(self, area: str) -> list["_Attempt"]:
        fences = [fence for job in self._store.entries(area) for fence in self._store.entries(job.key)]
        return [_Attempt(entry) for entry in fences if entry.key.rpartition("/")[2].isdigit()]

    def _is_ours(self, area: str, entries: Sized, rows: Sized) -> bool:
        """Rows outlive their bytes, so bytes of which not one has a row belong to another database."""
        if entries and not rows:
            log.warning("sweep_refused", area=area, entries=len(entries), reason="the database knows none of them")
        return bool(rows)

    def _remove(self, area: str, entries: list[Entry]) -> None:
        for entry in entries:
            try:
                self._store.delete(entry.key)
                self._done[f"{area}_removed"] += 1
            except OSError as exc:
                log.warning("sweep_failed", key=entry.key, reason=str(exc))

    def _tidy(self, attempts: "list[_Attempt]", jobs: Mapping[str, JobStand]) -> None:
        """Folders in which nothing lies, of jobs that will write no more."""
        for attempt in attempts:
            if attempt.job_id not in jobs or jobs[attempt.job_id].ended:
                self._store.delete_empty(attempt.key)
                self._store.delete_empty(attempt.key.rpartition("/")[0])


@dataclass(frozen=True)
class _Attempt:
    """A folder `<area>/<job>/<fence>`."""

    entry: Entry

    @property
    def key(self) -> str:
        return self.entry.key

    @property
    def job_id(self) -> str:
        return self.key.split("/")[1]

    @property
    def fence(self) -> int:
        return int(self.key.split("/")[2])


def clean_work(home: Path) -> list[str]:
    """Remove `<home>/work/<pid>-...`, the folders of workers that are gone from this machine; returns their names."""
    folders = [f for f in (home / "work").glob("[0-9]*-*") if not _alive(int(f.name.partition("-")[0]))]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in folders]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
