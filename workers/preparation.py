"""Turns a job's row into the child's `TrainingSpec`: files on this disk, a base model, the recipe asked for."""

from pathlib import Path

from sqlalchemy.orm import Session

from app.contracts.hyperparameters import EarlyStopping, Hyperparameters
from app.contracts.training import DatasetFile, Split, TrainingSpec
from app.core.errors import NotFound
from app.registry.files import FileRepository
from app.registry.models import ModelRepository
from app.registry.tables import JobRow
from model_store.verify import verify_folder
from workers.base_models import BaseModel, resolve
from workers.context import WorkerContext


def build_spec(job: JobRow, folder: Path, context: WorkerContext) -> TrainingSpec:
    """Raises a `ModelwrightError` when a file or the base model is gone."""
    with context.database.unit_of_work() as session:
        datasets = _datasets(job, session, context)
        base = _trained_base(job.base_model, session, context)
    base = base or resolve(job.base_model, context.settings)
    request = job.request
    return TrainingSpec(
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
        row = FileRepository(session).get(file_id)
        if row is None or row.profile is None:
            raise NotFound(f"file {file_id} was deleted or has expired: upload it again", param=f"{split}_file")
        found[split] = DatasetFile(
            file_id=file_id,
            path=str(context.store.path(f"files/{file_id}")),
            format=row.profile["format"],
            sha256=row.sha256,
        )
    return found


def _trained_base(name: str, session: Session, context: WorkerContext) -> BaseModel | None:
    """A version of the registry used as the base of another."""
    version = ModelRepository(session).resolve(name)
    if version is None:
        return None
    folder = context.store.path(version.artifact)
    verify_folder(folder, version.digest)
    return BaseModel(path=folder, revision=version.digest)
