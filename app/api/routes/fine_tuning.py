"""`/v1/fine_tuning/jobs`: OpenAI's shapes and our extras."""

import re
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response

from app.api.deps import CreationDep, JsonAnswer, ServicesDep, requires
from app.api.schemas.common import ListOf
from app.api.schemas.fine_tuning import CheckpointObject, EventObject, JobObject
from app.contracts.fine_tuning import FineTuningRequest
from app.core.errors import InvalidRequest

router = APIRouter(tags=["fine-tuning"], prefix="/v1/fine_tuning/jobs")

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=64)]
_METADATA = re.compile(r"metadata\[([^\[\]]{1,64})\]")
_EXAMPLES = {
    "text classification, all defaults": {
        "value": {"model": "all-MiniLM-L6-v2", "training_file": "file-abc", "suffix": "support-intents"}
    },
    "tagging with LoRA and columns of other names": {
        "value": {
            "model": "all-MiniLM-L6-v2",
            "training_file": "file-abc",
            "validation_file": "file-def",
            "task": "token-classification",
            "dataset": {"tokens": "words", "ner_tags": "tags"},
            "peft": {"type": "lora", "r": 16},
            "early_stopping": {"patience": 2},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}},
        }
    },
}


@router.post("", dependencies=[requires("train")], response_model=JobObject)
def create_job(
    body: Annotated[FineTuningRequest, Body(openapi_examples=_EXAMPLES)],
    services: ServicesDep,
    creation: CreationDep,
) -> Response:
    """Start a training job. Once this answers, the job runs to an end, whatever breaks between."""
    organization = services.settings.organization
    return JsonAnswer(
        services.fine_tuning.create(body, creation, lambda row: JobObject.of(row, organization).model_dump_json())
    )


@router.get("", dependencies=[requires("read")])
def list_jobs(request: Request, services: ServicesDep, after: After = None, limit: Limit = 20) -> ListOf[JobObject]:
    """Jobs, newest first; filter with `metadata[key]=value`, or `metadata=null` for jobs without any."""
    metadata: dict[str, str] = {}
    bare = request.query_params.get("metadata") == "null"
    for name, value in request.query_params.multi_items():
        if match := _METADATA.fullmatch(name):
            metadata[match[1]] = value
        elif name not in ("after", "limit") and not (bare and name == "metadata"):
            raise InvalidRequest(f"{name[:64]}: unknown parameter: remove it", code="unknown_field", param=name[:64])
    if any("\0" in text for pair in metadata.items() for text in pair):
        raise InvalidRequest("metadata: the NUL character is never stored, so nothing has it", param="metadata")
    rows, more = services.fine_tuning.page(after=after, limit=limit, metadata=None if bare else metadata)
    return ListOf.of([JobObject.of(r, services.settings.organization) for r in rows], more)


@router.get("/{job_id}", dependencies=[requires("read")])
def retrieve_job(job_id: str, services: ServicesDep) -> JobObject:
    """One job, with its progress."""
    return JobObject.of(services.fine_tuning.get(job_id), services.settings.organization)


@router.post("/{job_id}/cancel", dependencies=[requires("train")])
def cancel_job(job_id: str, services: ServicesDep) -> JobObject:
    """Cancel: a waiting job at once, a running one within a few seconds."""
    return JobObject.of(services.fine_tuning.cancel(job_id), services.settings.organization)


@router.post("/{job_id}/pause", dependencies=[requires("train")])
def pause_job(job_id: str, services: ServicesDep) -> JobObject:
    """Pause: a running job saves a checkpoint first, which can be served. `status` is `queued`, `phase` `paused`."""
    return JobObject.of(services.fine_tuning.pause(job_id), services.settings.organization)


@router.post("/{job_id}/resume", dependencies=[requires("train")])
def resume_job(job_id: str, services: ServicesDep) -> JobObject:
    """Go on from the checkpoint, with the same result as if there had been no pause."""
    return JobObject.of(services.fine_tuning.resume(job_id), services.settings.organization)


@router.get("/{job_id}/checkpoints", dependencies=[requires("read")])
def list_checkpoints(
    job_id: str, services: ServicesDep, after: After = None, limit: Limit = 10
) -> ListOf[CheckpointObject]:
    """Checkpoints, newest first; `/predict` answers for each by its `fine_tuned_model_checkpoint`."""
    services.fine_tuning.get(job_id)
    rows, more = services.checkpoints.page(job_id, after=after, limit=limit)
    return ListOf.of([CheckpointObject.of(r) for r in rows], more)


@router.get("/{job_id}/events", dependencies=[requires("read")])
def list_events(job_id: str, services: ServicesDep, after: After = None, limit: Limit = 20) -> ListOf[EventObject]:
    """What happened, newest first; `type` is `metrics` for steps and evaluations."""
    rows, more = services.fine_tuning.events(job_id, after=after, limit=limit)
    return ListOf.of([EventObject.of(r) for r in rows], more)
