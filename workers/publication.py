"""From a finished child to a version: artifact into the store, then ONE transaction for version, files and job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import __version__
from app.contracts.manifest import Manifest
from app.contracts.training import Finished, TrainingSpec
from app.core.ids import ft_id, new_id
from app.core.logging import get_logger
from app.registry.checkpoints import CheckpointRepository
from app.registry.jobs import JobRepository
from app.registry.leases import LeaseRepository
from app.registry.models import ModelRepository
from app.registry.tables import FileRow, JobRow
from model_store.store import Stored
from workers.context import WorkerContext

log = get_logger(__name__)


@dataclass(frozen=True)
class Staged:
    """What lies in the store and no row names yet."""

    key: str
    manifest: Manifest
    csv: FileRow | None
    """None for an export, which takes no step."""


def stage(job: JobRow, folder: Path, context: WorkerContext) -> Staged:
    """Copy artifact and step metrics into the store, under this attempt's fence."""
    key = f"artifacts/{job.id}/{job.fence}"
    manifest = context.store.publish(key, folder / "artifact")
    if job.kind == "export":
        return Staged(key, manifest, None)
    csv_id = new_id("file-")
    with (folder / "metrics.csv").open("rb") as source:
        stored = context.store.put(f"files/{csv_id}", source, limit=1 << 40)
    return Staged(key, manifest, _csv_row(csv_id, job, stored))


def publish(job: JobRow, spec: TrainingSpec, finished: Finished, staged: Staged, context: WorkerContext) -> None:
    """Make the version visible, unless the fence moved on: then the files stay unreferenced and nothing else does.

    Raises `Unavailable` when the database is away; it may be called again.
    """
    manifest, name = staged.manifest, ft_id(job.base_model, context.settings.organization, job.model_name)
    with context.database.unit_of_work() as session:
        jobs, leases = JobRepository(session), LeaseRepository(session)
        if not leases.holds(job.id, job.fence):
            log.warning("fence_moved_on")
            return
        checkpoint = None
        if job.kind == "export":
            checkpoint = CheckpointRepository(session).get(job.from_checkpoint or "")
            name = checkpoint.ft_id if checkpoint else name
        values: dict[str, Any] = {"fine_tuned_model": name, "error": None}
        if staged.csv is not None:
            session.merge(staged.csv)
            session.flush()
            row = jobs.get(job.id)
            progress = ((row and row.progress) or {}) | {"percent": 100.0, "eta_seconds": 0}
            values |= {"result_file": staged.csv.id, "trained_tokens": finished.trained_tokens, "progress": progress}
        leases.end(job.id, job.fence, "succeeded", **values)
        version = ModelRepository(session).publish(
            name=job.model_name,
            task=job.task,
            numbered=job.kind != "export",
            values={
                "ft_id": name,
                "job_id": job.id,
                "base_model": job.base_model,
                "base_revision": spec.base_model_revision,
                "artifact": staged.key,
                "digest": manifest.digest,
                "serving": manifest.serving.model_dump(mode="json"),
                "metrics": checkpoint.metrics if checkpoint else finished.metrics,
                "datasets": _datasets(spec, finished),
                "recipe": _recipe(spec, manifest),
                "parity": finished.parity,
                "sizes": {name: entry.bytes for name, entry in manifest.files.items()},
                "code_version": f"modelwright {__version__}",
            },
        )
        if version.number is not None:
            known = f"{version.model.name}:{version.number}"
            message = f"New model version {known} is ready, also as {name}"
            data = {"model": known, "fine_tuned_model": name}
            jobs.add_events(job.id, [{"level": "info", "type": "message", "message": message, "data": data}])


def _csv_row(csv_id: str, job: JobRow, stored: Stored) -> FileRow:
    return FileRow(
        id=csv_id,
        filename=f"{job.id}-metrics.csv",
        purpose="fine-tune-results",
        bytes=stored.bytes,
        sha256=stored.sha256,
        key_id=job.key_id,
    )


def _datasets(spec: TrainingSpec, finished: Finished) -> dict[str, object]:
    return {split: {"file_id": file.file_id, "sha256": file.sha256} for split, file in spec.datasets.items()} | {
        "report": finished.datasets
    }


def _recipe(spec: TrainingSpec, manifest: Manifest) -> dict[str, object]:
    """What was asked for and what was resolved: enough to make the same weights again on the same machine."""
    asked = spec.model_dump(mode="json", include={"tuner", "hyperparameters", "early_stopping", "seed", "columns"})
    return {"asked": asked, **manifest.info}
