"""The batches of one gateway process: looked for, claimed, run beside each other. What running one is: `batch_run.py`.

Several gateways share the work by leases (`app/registry/batches.py`). Behind online traffic: a few lines are in flight
at once, and none is sent while requests wait for a worker.
"""

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any

from app.core.errors import Unavailable
from app.core.logging import get_logger
from app.registry.batches import BatchRepository
from app.registry.tables import BatchRow
from app.services.batch_run import BatchContext, BatchRun

log = get_logger(__name__)

_AT_ONCE = 16
"""Batches under way: one that backs off for hours must not hold up the others."""
_POLL_SECONDS = 1.0


class BatchRunner:
    """With `batch_concurrency` 0 it runs none."""

    def __init__(self, context: BatchContext) -> None:
        self.context = context
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Look for batches from now on."""
        if self.context.settings.batch_concurrency:
            self._keep(self._look())

    async def stop(self) -> None:
        """Write down what is answered and give the batches back; what hangs is left to its lease after 5 s."""
        for _ in range(2):
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5.0)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look(self) -> None:
        while True:
            row = None
            try:
                if len(self._tasks) <= _AT_ONCE:  # this one counts too
                    row = await asyncio.to_thread(self._claim)
            except Unavailable:
                pass  # the database will be back
            except Exception:
                log.exception("batch_claim_failed")
            if row is None:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                self._keep(BatchRun(self.context, row).run())

    def _claim(self) -> BatchRow | None:
        with self.context.database.unit_of_work() as session:
            return BatchRepository(session).claim(self._owner, self.context.settings.lease_seconds)
