"""The consumer as a component of the Celery worker: started with it, stopped in order with it.

Use `--pool=solo` or `threads`: the threads of a runtime do not survive a fork, and a prefork pool forks again
whenever it replaces a child. Knows nothing of how a consumer is made: a subclass says so in `build`.
"""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import bootsteps

if TYPE_CHECKING:  # celery_app imports this file in trainers too, which load no ONNX Runtime
    from workers.inference.consumer import Consumer


class InferenceStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """Add a subclass with `app.steps["worker"].add(...)`."""

    requires = frozenset({"celery.worker.components:Pool"})
    build: Callable[[], "Consumer"]
    """A static method of the subclass: makes the consumer to run."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.consumer: Consumer | None = None

    def start(self, parent: Any) -> None:
        del parent
        self.consumer = self.build()
        self.consumer.start()
        gc.collect()
        gc.freeze()  # a full collection takes 0.1 s for what is loaded by now, in mid-batch

    def stop(self, parent: Any) -> None:
        """Returns when the batch in hand is answered."""
        del parent
        if self.consumer is not None:
            self.consumer.stop()
            self.consumer = None

    terminate = stop
