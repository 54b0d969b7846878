"""Celery wiring only: the broker's options, the entry points, and what starts and stops with a worker.

Why each option: docs/decisions/0003-celery-is-a-doorbell.md.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Celery, bootsteps, signals

from app.contracts.queues import INFERENCE_CONTROL_QUEUE, RUN_JOB, TRAINING_QUEUE
from app.core.logging import configure_logging
from app.core.queue import BROKER_OPTIONS
from app.core.settings import get_settings
from workers.inference.step import InferenceStep

if TYPE_CHECKING:
    from workers.inference.consumer import Consumer

settings = get_settings()
celery_app = Celery("modelwright", broker=settings.redis_url)
celery_app.conf.update(
    accept_content=["json"],
    broker_connection_max_retries=None,
    broker_connection_retry_on_startup=True,
    broker_transport_options={**BROKER_OPTIONS, "visibility_timeout": 3600},
    task_acks_late=False,
    task_create_missing_queues=True,
    task_default_queue=TRAINING_QUEUE,
    task_ignore_result=True,
    task_publish_retry=False,
    worker_disable_prefetch=True,
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
    worker_send_task_events=False,
)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _logging(**_: Any) -> None:
    configure_logging(settings, "worker")


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_jobs(**_: Any) -> None:
    from workers.lifecycle import stopping

    stopping.set()


@celery_app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:  # noqa: ARG001  (said for the log; whose turn it is, the table knows)
    """The doorbell: somebody says that this job, at least, may be waiting."""
    from workers.context import get_context
    from workers.lifecycle import run_waiting

    run_waiting(get_context())


class TrainerStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """A trainer also does the chores: the bell may have been lost, a webhook is due, the store wants sweeping."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._stop: Callable[[], None] | None = None

    def include_if(self, parent: Any) -> bool:
        return TRAINING_QUEUE in parent.app.amqp.queues.consume_from

    def start(self, parent: Any) -> None:
        from workers.chores import start
        from workers.context import get_context

        self._stop = start(get_context(), parent.hostname)

    def stop(self, _parent: Any) -> None:
        if self._stop:
            self._stop()


class ServeStep(InferenceStep):
    """An inference worker runs the data plane beside its control queue."""

    def include_if(self, parent: Any) -> bool:
        return INFERENCE_CONTROL_QUEUE in parent.app.amqp.queues.consume_from

    @staticmethod
    def build() -> "Consumer":
        from workers.context import get_context
        from workers.serving import build_consumer

        return build_consumer(get_context())


celery_app.steps["worker"].update({TrainerStep, ServeStep})
