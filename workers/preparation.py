"""Turns a job's row into the child's `TrainingSpec`: files, a base model, the recipe, where to go on from."""

from pathlib import Path

from sqlalchemy.orm import Session

from app.contracts.checkpoints import CheckpointPolicy
from app.contracts.hyperparameters import EarlyStopping, Hyperparameters
from app.contracts.training import DatasetFile, Split, TrainingSpec
from app.core.errors import NotFound
from app.registry.files import FileRepository
from app.registry.models import ModelRepository
from app.registry.tables import JobRow
from model_store.verify import verify_folder
from workers import checkpoints
from workers.base_models import BaseModel, resolve
from workers.context import WorkerContext
from workers.ledger import Ledger


def build_spec(job: JobRow, folder: Path, ledger: Ledger, context: WorkerContext) -> TrainingSpec:
    """Raises a `ModelwrightError` when a file, the base model or every checkpoint is gone."""
    with context.database.unit_of_work() as session:
        datasets = _datasets(job, session, context)
        base = _trained_base(job.base_version, session, context)
    base = base or resolve(job.base_model, context.settings)
    request, resolved = job.request, job.resolved
    resume_from, start_from = None, None
    if job.kind == "training" and (found := checkpoints.newest(job, ledger, context)):
        resume_from, manifest = found
        # The recipe it was made with; the row may not have it, when the database was away.
        resolved, ledger.saved_step = manifest.resolved, manifest.step
    if job.from_checkpoint and not resume_from:
        _, start_from, manifest = checkpoints.verified(job.from_checkpoint, context)
        resolved = manifest.resolved if job.kind == "export" else resolved
    policy = CheckpointPolicy.model_validate(request["checkpoint"])
    if policy.every_steps is None and policy.every_seconds is None:
        policy = policy.model_copy(update={"every_seconds": context.settings.checkpoint_seconds})
    return TrainingSpec(
        checkpoint=policy,
        checkpoint_folder=str(context.store.path(checkpoints.folder(job))) if job.kind == "training" else None,
        resume_from=str(resume_from) if resume_from else None,
        start_from=str(start_from) if start_from else None,
        resolved=resolved,
        batch_halvings=job.batch_halvings,
        export_only=job.kind == "export",
        job_id=job.id,
        task=job.task,
        multi_label=request["multi_label"],
        base_model=job.base_model,
        base_model_path=str(base.path),
        base_model_revision=base.revision,
        datasets=datasets,
        columns=request["dataset"],
        tuner=request["peft"],
        hyperparameters=Hyperparameters.model_validate(request["hyperparameters"]),
        early_stopping=EarlyStopping.model_validate(request["early_stopping"]) if request["early_stopping"] else None,
        seed=job.seed,
        output=str(folder),
    )


def _datasets(job: JobRow, session: Session, context: WorkerContext) -> dict[Split, DatasetFile]:
    wanted: dict[Split, str | None] = {
        "train": job.training_file,
        "validation": job.validation_file,
        "test": job.test_file,
    }
    found: dict[Split, DatasetFile] = {}
    for split, file_id in wanted.items():
        if file_id is None:
            continue
        row = FileRepository(session).get(file_id, expired=True)  # what a job was made with stays until its end
        if row is None or row.profile is None:
            raise NotFound(f"file {file_id} was deleted or has expired: upload it again", param=f"{split}_file")
        found[split] = DatasetFile(
            file_id=file_id,
            path=str(context.store.path(f"files/{file_id}")),
            format=row.profile["format"],
            sha256=row.sha256,
        )
    return found


def _trained_base(version_id: str | None, session: Session, context: WorkerContext) -> BaseModel | None:
    """A version of the registry used as the base of another, though it may have been deleted since."""
    version = ModelRepository(session).version(version_id) if version_id else None
    if version is None:
        return None
    folder = context.store.path(version.artifact)
    verify_folder(folder, version.digest)
    return BaseModel(path=folder, revision=version.digest)
