"""What a job request must satisfy before it becomes a row. Pure: profiles and rows in, errors out."""

import re

from app.contracts.common import NAME_PATTERN
from app.contracts.fine_tuning import FineTuningRequest
from app.contracts.profile import DatasetProfile, closest_shape, first_problem, fitting_shape, infer_task
from app.contracts.tasks import TASKS, RowShape, TaskSpec
from app.core.errors import InvalidRequest
from app.registry.jobs import JobRepository
from app.registry.tables import ModelRow

MIN_ROWS = 4
"""Two to train on, one to validate, one to test."""


def chosen_task(request: FineTuningRequest, profile: DatasetProfile) -> TaskSpec:
    """The task asked for, else the one whose columns the file has. Raises `InvalidRequest`."""
    if request.task is not None:
        if not TASKS[request.task].trainable:
            raise InvalidRequest(
                f"task {request.task!r} cannot be trained yet: base models answer it as they are; choose from "
                f"{', '.join(name for name, task in TASKS.items() if task.trainable)}",
                param="task",
            )
        return TASKS[request.task]
    task = infer_task(profile, request.dataset)
    if task is None:
        shapes = "; ".join(f"{t.name}: {' + '.join(s.fields)}" for t in TASKS.values() for s in t.shapes)
        columns = ", ".join(repr(c) for c in profile.column_order[:20])
        raise InvalidRequest(
            f"no task fits the columns {columns} of training_file ({shapes}): rename the columns, map them with "
            "`dataset`, or give `task`",
            code="missing_column",
            param="training_file",
        )
    return task


def check_rows(request: FineTuningRequest, task: TaskSpec, profiles: dict[str, DatasetProfile]) -> RowShape:
    """The row shape all files share. Raises `InvalidRequest` naming file, line and column."""
    training = profiles["training_file"]
    fields = {f for s in task.shapes for f in s.fields}
    for field in request.dataset:
        if field not in fields:
            raise InvalidRequest(
                f"dataset.{field} is no field of {task.name}: map {', '.join(sorted(fields))}",
                param=f"dataset.{field}",
            )
    shape = fitting_shape(training, task, request.dataset) or closest_shape(training, task, request.dataset)
    for field, profile in profiles.items():
        if problem := first_problem(profile, shape, request.dataset):
            code = "missing_column" if " is missing" in problem else "invalid_dataset"
            raise InvalidRequest(f"{field}: {problem}", code=code, param=field)
    if training.rows < MIN_ROWS:
        raise InvalidRequest(
            f"training_file has {training.rows} rows; at least {MIN_ROWS} are needed",
            code="too_few_rows",
            param="training_file",
        )
    _check_labels(training, shape, request)
    return shape


def _check_labels(profile: DatasetProfile, shape: RowShape, request: FineTuningRequest) -> None:
    column = request.dataset.get(shape.label_field, shape.label_field)
    values = profile.columns[column].values
    if values is None:
        raise InvalidRequest(
            f"training_file: column {column!r} holds more than 5,000 different labels: is it the right column?",
            code="too_many_labels",
            param="training_file",
        )
    if shape.same_length:
        if not any(v != "O" for v in values):
            raise InvalidRequest(
                f"training_file: every tag in {column!r} is O: give at least one entity",
                code="one_label",
                param="training_file",
            )
    elif len(values) < 2:
        raise InvalidRequest(
            f"training_file: column {column!r} holds {len(values)} label"
            f"{'' if len(values) != 1 else f' ({next(iter(values))!r})'}; a classifier needs at least 2",
            code="one_label",
            param="training_file",
        )


def check_menu(request: FineTuningRequest, task: TaskSpec) -> None:
    """Refuse pairs the menu does not allow."""
    if request.peft.type not in task.tuners:
        raise InvalidRequest(
            f"peft {request.peft.type!r} does not work with {task.name}: choose from {', '.join(sorted(task.tuners))}",
            param="peft",
        )
    metric = request.early_stopping.metric if request.early_stopping else None
    if metric is not None and metric not in task.metrics:
        raise InvalidRequest(
            f"early_stopping.metric is {metric!r}; {task.name} has {', '.join(task.metrics)}",
            param="early_stopping.metric",
        )


def default_name(base: str, task: TaskSpec) -> str:
    """`<base>-<task>`, cut to what a registry name may be."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{base.rsplit('/', 1)[-1]}-{task.name}").lstrip("._-")
    return name[:64] or task.name


def agreed_name(name: str, task: TaskSpec, model: ModelRow | None, jobs: JobRepository) -> str:
    """The spelling the registry uses. Raises `InvalidRequest` for a reserved name or one of another task."""
    if name.lower() == "ft" or not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(f"suffix {name!r} is reserved: choose another name", param="suffix")
    known = (model.name, model.task) if model else None
    if known is None and (job := jobs.unfinished_name(name)):
        known = (job.model_name, job.task)
    if known is None:
        return name
    if known[1] != task.name:
        raise InvalidRequest(
            f"{known[0]!r} is a {known[1]} model, and a name keeps its task: give this {task.name} job another suffix",
            code="task_mismatch",
            param="suffix",
        )
    return known[0]
