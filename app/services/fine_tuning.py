"""Training jobs: checked against menu, files and registry, committed as a row, then the bell rings."""

import secrets
from typing import Any

from app.contracts.fine_tuning import FineTuningRequest
from app.contracts.profile import DatasetProfile
from app.core.errors import InvalidRequest, NotFound
from app.core.ids import new_id
from app.core.queue import Bell
from app.core.settings import Settings
from app.registry.files import FileRepository
from app.registry.jobs import OPEN_STATES, JobRepository
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import FileRow, JobEventRow, JobRow
from app.services.job_checks import agreed_name, check_menu, check_rows, chosen_task, default_name
from app.services.models import ModelService

_SPLITS = ("training_file", "validation_file", "test_file")


class FineTuningService:
    def __init__(self, database: Database, models: ModelService, bell: Bell, settings: Settings) -> None:
        self._database, self._models, self._bell, self._settings = database, models, bell, settings

    def create(self, request: FineTuningRequest, key_id: str) -> JobRow:
        """Raises `InvalidRequest` or `NotFound` naming the field; once it returns, the job is never lost."""
        files = self._files(request)
        profiles = {field: DatasetProfile.model_validate(row.profile) for field, row in files.items()}
        task = chosen_task(request, profiles["training_file"])
        shape = check_rows(request, task, profiles)
        check_menu(request, task)
        self._check_base(request.model)
        name = request.suffix or default_name(request.model, task)
        row = JobRow(
            id=new_id("ftjob-"),
            kind="training",
            key_id=key_id,
            task=task.name,
            base_model=request.model,
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
                "dataset": request.dataset,
            },
            metadata_=request.metadata,
            max_attempts=self._settings.max_attempts,
        )
        with self._database.unit_of_work() as session:
            jobs = JobRepository(session)
            row.model_name = agreed_name(name, task, ModelRepository(session).by_name(name), jobs)
            jobs.add(row)
            jobs.add_events(row.id, [_event("info", f"Created fine-tuning job: {row.id}"), *_reports(files)])
        self._bell.ring(row.id)
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
        with self._database.unit_of_work() as session:
            jobs = JobRepository(session)
            row = _found(jobs.get(job_id, lock=True), job_id)
            if row.state not in OPEN_STATES:
                raise InvalidRequest(
                    f"job {job_id} has {row.state} and cannot be cancelled",
                    code="job_ended",
                    param="fine_tuning_job_id",
                )
            jobs.cancel(row)
            jobs.add_events(job_id, [_event("info", "Cancel requested")])
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

    def _files(self, request: FineTuningRequest) -> dict[str, FileRow]:
        found: dict[str, FileRow] = {}
        with self._database.unit_of_work() as session:
            for field in _SPLITS:
                file_id = getattr(request, field)
                if file_id is None:
                    continue
                row = FileRepository(session).get(file_id)
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

    def _check_base(self, name: str) -> None:
        if self._models.is_base(name):
            return
        with self._database.unit_of_work() as session:
            if ModelRepository(session).resolve(name) is not None:
                return
        raise InvalidRequest(
            f"no base model {name!r}; there are {', '.join(self._models.base_names())}. A trained version "
            "(name:number), a folder under MODELWRIGHT_MODELS or, with MODELWRIGHT_HUB=1, a hub id will do too",
            code="model_not_found",
            param="model",
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
