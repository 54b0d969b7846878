"""The only place where queue, list and task names are spelled."""

TRAINING_QUEUE = "modelwright.training"
INFERENCE_CONTROL_QUEUE = "modelwright.inference.control"

RUN_JOB = "modelwright.run_job"
"""Celery message `{job_id}`: a doorbell. The row in Postgres is the truth."""

PREDICT_DOORBELL = "modelwright:predict:doorbell"
"""List of the lines with waiting requests, each once; any inference worker may answer any of them."""

PREDICT_WAITING = "modelwright:predict:waiting"
"""Map of the tokens that wait, in all (field `*`) and by caller; changed only together with the lists
(`app/core/predict_queue.py`)."""

PREDICT_DIRECT = "modelwright:predict:direct"
"""List on which idle workers block: a gateway's only request, or an empty string: look at the lines."""

WORKERS = "modelwright:workers"
"""Hash key prefix of live workers' heartbeats: `<WORKERS>:<role>:<name>`, expiring."""


def inference_connection(worker: str) -> str:
    """The name of an inference worker's connections: when it is killed they are gone at once, its heartbeat is not."""
    return f"modelwright-{worker}"


def predict_queue(line: str) -> str:
    """List of encoded requests of one caller for one version (`predict_queue.line`): a batch never mixes versions."""
    return f"modelwright:predict:line:{line}"


def version_statistics(version_id: str) -> str:
    """Map of the counts of one version's predictions, added to by all gateways."""
    return f"modelwright:predict:statistics:{version_id}"


def reply_list(gateway_id: str) -> str:
    """The list one gateway process pops its replies from."""
    return f"modelwright:predict:reply:{gateway_id}"
