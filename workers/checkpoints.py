"""Checkpoints from the worker parent's side: verified, given a row under the fence, pruned, found again.

The child seals them in the store without asking anybody, so that a database that is away costs no progress. What a
dead attempt sealed is adopted once, at the next claim; what a stale worker seals after that is never looked at.
"""

from pathlib import Path

from app.contracts.checkpoints import CheckpointManifest, CheckpointPolicy
from app.contracts.training import Checkpointed
from app.core.errors import ModelwrightError
from app.core.ids import ft_id, new_id
from app.core.logging import get_logger
from app.registry.checkpoints import CheckpointRepository
from app.registry.leases import LeaseRepository
from app.registry.tables import CheckpointRow, JobRow
from model_store import checkpoints as sealed
from model_store.verify import ArtifactCorrupt
from workers.context import WorkerContext
from workers.ledger import Ledger

log = get_logger(__name__)


class CheckpointCorrupt(ModelwrightError):
    """No checkpoint of the job can be read."""

    default_code = "checkpoint_corrupt"


class FenceLost(Exception):
    """Another attempt owns the job."""


def folder(job: JobRow, fence: int | None = None) -> str:
    """The store's key under which an attempt seals its checkpoints."""
    return f"checkpoints/{job.id}/{fence or job.fence}"


def register(job: JobRow, message: Checkpointed, ledger: Ledger, context: WorkerContext) -> None:
    """Verify a checkpoint that the child has just sealed, give it a row, remove the oldest beyond `keep`.

    Raises `FenceLost`, and `Unavailable` when the database is away: the checkpoint waits in the store.
    """
    key = f"{folder(job)}/{message.folder}"
    try:
        manifest = sealed.read(context.store.path(key), message.digest)
    except ArtifactCorrupt as exc:
        ledger.note("warn", f"The checkpoint at step {message.step} cannot be read back ({exc.message}); it is ignored")
        return
    with context.database.unit_of_work() as session:
        if not LeaseRepository(session).set(job.id, job.fence, failures=0):  # forgiven: progress was saved
            raise FenceLost
        rows = CheckpointRepository(session)
        if key not in rows.keys(job.id):  # else: written before, by a commit whose answer was lost
            rows.add(_row(job, job.fence, key, manifest, context))
        doomed = _beyond(job, rows)
        for row in doomed:
            rows.delete(row)
    for row in doomed:
        context.store.delete(row.key)
    ledger.saved_step, ledger.progressed = message.step, True
    ledger.note("info", f"Checkpoint at step {message.step}", {"step": message.step, "reason": message.reason})


def adopt(job: JobRow, ledger: Ledger, context: WorkerContext) -> None:
    """Give rows to what earlier attempts sealed and could not tell of. Raises `FenceLost` and `Unavailable`."""
    found = []
    for fence in range(job.adopted_fence + 1, job.fence):
        for path in sealed.sealed_folders(context.store.path(folder(job, fence))):
            try:
                found.append((fence, f"{folder(job, fence)}/{path.name}", sealed.read(path)))
            except ArtifactCorrupt as exc:
                ledger.note("warn", f"A checkpoint under {path.name} is corrupt ({exc.message}); it is ignored")
    with context.database.unit_of_work() as session:
        rows = CheckpointRepository(session)
        known = rows.keys(job.id)
        new = [entry for entry in found if entry[1] not in known]
        for fence, key, manifest in new:
            rows.add(_row(job, fence, key, manifest, context))
        values = {"failures": 1} if new else {}
        if not LeaseRepository(session).set(job.id, job.fence, adopted_fence=job.fence - 1, **values):
            raise FenceLost
    if new:
        job.failures = 1


def newest(job: JobRow, ledger: Ledger, context: WorkerContext) -> tuple[Path, CheckpointManifest] | None:
    """The newest checkpoint that can be read; corrupt ones are said, and struck out. None when there was none.

    Raises `CheckpointCorrupt` when there were some and none can be read.
    """
    with context.database.unit_of_work() as session:
        rows = CheckpointRepository(session).of(job.id)
    for row in rows:
        try:
            return (path := context.store.path(row.key)), sealed.read(path, row.digest)
        except ArtifactCorrupt as exc:
            ledger.note(
                "warn",
                f"The checkpoint at step {row.step} is corrupt ({exc.message}); the one before it is used",
                {"step": row.step},
            )
            with context.database.unit_of_work() as session:
                repository = CheckpointRepository(session)
                if not LeaseRepository(session).holds(job.id, job.fence):
                    raise FenceLost from exc
                if doomed := repository.get(row.id):
                    repository.delete(doomed)
    if rows:
        raise CheckpointCorrupt(
            f"none of the {len(rows)} checkpoints can be read: check the store's disk, then create the job again"
        )
    return None


def verified(checkpoint_id: str, context: WorkerContext) -> tuple[CheckpointRow, Path, CheckpointManifest]:
    """One checkpoint to start from. Raises `CheckpointCorrupt` when it is gone or cannot be read."""
    with context.database.unit_of_work() as session:
        row = CheckpointRepository(session).get(checkpoint_id)
    if row is None:
        raise CheckpointCorrupt(f"checkpoint {checkpoint_id} was deleted: start from another", param="from_checkpoint")
    path = context.store.path(row.key)
    try:
        return row, path, sealed.read(path, row.digest)
    except ArtifactCorrupt as exc:
        raise CheckpointCorrupt(f"checkpoint {checkpoint_id}: {exc.message}", param="from_checkpoint") from exc


def _row(job: JobRow, fence: int, key: str, manifest: CheckpointManifest, context: WorkerContext) -> CheckpointRow:
    named = ft_id(job.base_model, context.settings.organization, job.model_name)
    return CheckpointRow(
        id=new_id("ftckpt-"),
        job_id=job.id,
        fence=fence,
        step=manifest.step,
        reason=manifest.reason,
        key=key,
        digest=manifest.digest,
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        metrics={"step": manifest.step, **manifest.metrics},
        ft_id=f"{named}:ckpt-step-{manifest.step}",
    )


def _beyond(job: JobRow, rows: CheckpointRepository) -> list[CheckpointRow]:
    """What the policy no longer keeps; never the last two, and nothing that another job starts from."""
    keep = max(2, CheckpointPolicy.model_validate(job.request["checkpoint"]).keep)
    return rows.unneeded(rows.of(job.id)[keep:])
