"""The only place where queue, list and task names are spelled."""

TRAINING_QUEUE = "modelwright.training"
INFERENCE_CONTROL_QUEUE = "modelwright.inference.control"

RUN_JOB = "modelwright.run_job"
"""Celery message `{job_id}`: a doorbell. The row in Postgres is the truth."""

PREDICT_DOORBELL = "modelwright:predict:doorbell"
"""List of the versions with waiting requests, each once; any inference worker may answer any of them."""

PREDICT_WAITING = "modelwright:predict:waiting"
"""Counter of inputs that wait; changed only together with the lists (`app/core/predict_queue.py`)."""

WORKERS = "modelwright:workers"
"""Hash key prefix of live workers' heartbeats: `<WORKERS>:<role>:<name>`, expiring."""


def predict_queue(version_id: str) -> str:
    """List of encoded requests for one version: a batch never mixes versions."""
    return f"modelwright:predict:version:{version_id}"


def reply_list(gateway_id: str) -> str:
    """The list one gateway process pops its replies from."""
    return f"modelwright:predict:reply:{gateway_id}"
