"""Training jobs: checked against menu, files and registry, committed as a row, then the bell rings."""

import secrets
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from app.contracts.fine_tuning import FineTuningRequest
from app.contracts.profile import DatasetProfile
from app.contracts.tasks import TaskSpec
from app.core.creation import Creation
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import new_id
from app.core.queue import Bell
from app.core.settings import Settings
from app.registry.checkpoints import CheckpointRepository
from app.registry.creations import CreationRepository
from app.registry.files import FileRepository
from app.registry.jobs import OPEN_STATES, JobRepository
from app.registry.models import ModelRepository
from app.registry.quotas import require_job
from app.registry.session import Database
from app.registry.tables import FileRow, JobEventRow, JobRow
from app.services.job_checks import agreed_name, check_menu, check_rows, chosen_task, default_name
from app.services.models import ModelService

_SPLITS = ("training_file", "validation_file", "test_file")


class FineTuningService:
    def __init__(self, database: Database, models: ModelService, bell: Bell, settings: Settings) -> None:
        self._database, self._models, self._bell, self._settings = database, models, bell, settings

    def create(self, request: FineTuningRequest, creation: Creation, render: Callable[[JobRow], str]) -> str:
        """Raises `InvalidRequest` or `NotFound` naming the field; once it returns, the job is never lost.

        One transaction from the first look to the written answer: a retry meets all of it or nothing.
        """
        with self._database.unit_of_work() as session:
            creations = CreationRepository(session)
            creations.check(creation)
            row = self._add(session, request, creation.key_id)
            answer = creations.remember(creation, render(row))
        self._bell.ring(row.id)
        return answer

    def _add(self, session: Session, request: FineTuningRequest, key_id: str) -> JobRow:
        files = self._files(session, request)
        profiles = {field: DatasetProfile.model_validate(row.profile) for field, row in files.items()}
        task = chosen_task(request, profiles["training_file"])
        shape = check_rows(request, task, profiles)
        check_menu(request, task)
        base_version = self._base_version(session, request.model)
        if request.from_checkpoint is not None:
            _check_start(session, request, task)
        name = request.suffix or default_name(request.model, task)
        if name.lower() in map(str.lower, self._models.base_names()):
            raise InvalidRequest(
                f"suffix {name!r} is the name of a base model, which answers to it: choose another", param="suffix"
            )
        row = JobRow(
            id=new_id("ftjob-"),
            kind="training",
            key_id=key_id,
            task=task.name,
            base_model=request.model,
            base_version=base_version,
            from_checkpoint=request.from_checkpoint,
            model_name=name,
            suffix=request.suffix,
            seed=request.seed if request.seed is not None else secrets.randbelow(2**31),
            training_file=request.training_file,
            validation_file=request.validation_file,
            test_file=request.test_file,
            request={
                "multi_label": shape.multi_label,
                "peft": request.peft.model_dump(mode="json"),
                "hyperparameters": request.chosen_hyperparameters().model_dump(mode="json"),
                "early_stopping": request.early_stopping.model_dump(mode="json") if request.early_stopping else None,
                "checkpoint": request.checkpoint.model_dump(mode="json"),
                "dataset": request.dataset,
            },
            metadata_=request.metadata,
            max_attempts=self._settings.max_attempts,
        )
        jobs = JobRepository(session)
        row.model_name = agreed_name(name, task, ModelRepository(session).by_name(name), jobs)
        require_job(session, key_id, self._settings.max_queued_jobs)
        jobs.add(row)
        jobs.add_events(row.id, [_event("info", f"Created fine-tuning job: {row.id}"), *_reports(files)])
        return row

    def get(self, job_id: str) -> JobRow:
        with self._database.unit_of_work() as session:
            row = JobRepository(session).get(job_id)
        return _found(row, job_id)

    def page(self, *, after: str | None, limit: int, metadata: dict[str, str] | None) -> tuple[list[JobRow], bool]:
        with self._database.unit_of_work() as session:
            return JobRepository(session).page(after=after, limit=limit, metadata=metadata)

    def cancel(self, job_id: str) -> JobRow:
        """Raises `InvalidRequest` for a job that has ended: a client must not try again."""
        return self._change(job_id, "cancelled", JobRepository.cancel)

    def pause(self, job_id: str) -> JobRow:
        """Let the job rest after a checkpoint. Raises `InvalidRequest` once it has ended."""
        return self._change(job_id, "paused", JobRepository.pause)

    def resume(self, job_id: str) -> JobRow:
        """Put a paused job back in the queue; any other unfinished one just goes on."""
        row = self._change(job_id, "resumed", JobRepository.resume)
        self._bell.ring(row.id)
        return row

    def _change(self, job_id: str, wish: str, change: Callable[[JobRepository, JobRow], None]) -> JobRow:
        with self._database.unit_of_work() as session:
            jobs = JobRepository(session)
            row = _found(jobs.get(job_id, lock=True), job_id)
            if row.state not in OPEN_STATES:
                raise InvalidRequest(
                    f"job {job_id} has {row.state} and cannot be {wish}",
                    code="job_ended",
                    param="fine_tuning_job_id",
                )
            change(jobs, row)
            jobs.add_events(job_id, [_event("info", f"Asked to be {wish}")])
        return row

    def events(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[JobEventRow], bool]:
        self.get(job_id)
        number = None
        if after is not None:
            tail = after.removeprefix("ftevent-")
            if not (tail.isascii() and tail.isdigit() and len(tail) < 19):
                raise InvalidRequest(f"after={after!r} names no event of this job", param="after")
            number = int(tail)
        with self._database.unit_of_work() as session:
            return JobRepository(session).events(job_id, before=number, limit=limit)

    def _files(self, session: Session, request: FineTuningRequest) -> dict[str, FileRow]:
        found: dict[str, FileRow] = {}
        for field in _SPLITS:
            file_id = getattr(request, field)
            if file_id is None:
                continue
            row = FileRepository(session).get(file_id, lock="keep")
            if row is None:
                raise InvalidRequest(
                    f"{field}: no file {file_id!r}: upload it with POST /v1/files",
                    code="file_not_found",
                    param=field,
                )
            if row.profile is None:
                raise InvalidRequest(
                    f"{field}: file {file_id} has purpose {row.purpose!r}; upload it with 'fine-tune'",
                    param=field,
                )
            found[field] = row
        return found

    def _base_version(self, session: Session, name: str) -> str | None:
        """The id of the version that `name` means now; None for a base model."""
        if self._models.is_base(name):
            return None
        version = ModelRepository(session).resolve(name)
        if version is not None:
            return version.id
        raise InvalidRequest(
            f"no base model {name!r}; there are {', '.join(self._models.base_names())}. A trained version "
            "(name:number), a folder under MODELWRIGHT_MODELS or, with MODELWRIGHT_HUB=1, a hub id will do too",
            code="model_not_found",
            param="model",
        )


def _check_start(session: Session, request: FineTuningRequest, task: TaskSpec) -> None:
    """A checkpoint holds what one tuner trained on one base: raises `InvalidRequest` when this job has others."""
    checkpoints = CheckpointRepository(session)
    row = checkpoints.get(request.from_checkpoint or "", keep=True)
    if row is None:
        raise InvalidRequest(
            f"no checkpoint {request.from_checkpoint!r}: GET /v1/fine_tuning/jobs/{{id}}/checkpoints lists a job's",
            code="checkpoint_not_found",
            param="from_checkpoint",
        )
    source = checkpoints.source_of(row)
    asked = {"model": request.model, "task": task.name, "peft": request.peft.model_dump(mode="json")}
    made = {"model": source.base_model, "task": source.task, "peft": source.request["peft"]}
    for field, value in asked.items():
        if value != made[field]:
            raise InvalidRequest(
                f"{field} is {value!r}, but checkpoint {row.id} was made with {made[field]!r}: give that, or start "
                "from the base model",
                param=field,
            )


def _found(row: JobRow | None, job_id: str) -> JobRow:
    if row is None:
        raise NotFound(
            f"no fine-tuning job {job_id!r}: GET /v1/fine_tuning/jobs lists them", param="fine_tuning_job_id"
        )
    return row


def _event(level: str, message: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"level": level, "type": "message", "message": message, "data": data}


def _reports(files: dict[str, FileRow]) -> list[dict[str, Any]]:
    """Duplicate rows are said, never dropped."""
    return [
        _event(
            "warn",
            f"{field} {row.id} holds {count} duplicate rows; they are kept",
            {"file_id": row.id, "duplicate_rows": count},
        )
        for field, row in files.items()
        if row.profile and (count := row.profile["duplicate_rows"])
    ]
