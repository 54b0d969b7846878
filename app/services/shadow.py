"""Shadow traffic: a copy of what a version answered goes to another one, whose decisions are counted and dropped.

Nobody waits for a copy and nobody sees its answer. Copies have a line of their own in the prediction queue, so they
take turns with the callers and never get in front of them.
"""

import asyncio
import time
from typing import Any

from app.core.dataplane import DataPlane
from app.core.errors import ModelwrightError
from app.core.metrics import VersionMetrics
from app.services.models import ServableVersion

MAX_INPUTS = 1024
"""In flight; copies over it are skipped. One call of the largest size is let through when nothing is in flight."""
_CALLER = "shadow"
_TIMEOUT_SECONDS = 30.0
_MEASURED = frozenset({"score", "scores", "logits"})


def decision(output: Any) -> Any:
    """What of an output a caller acts on: labels, spans and tags, not the scores, which no two versions share."""
    if isinstance(output, dict):
        return {name: decision(value) for name, value in output.items() if name not in _MEASURED}
    if isinstance(output, list) and output and isinstance(output[0], dict):
        return sorted((decision(value) for value in output), key=repr)  # several labels stand in order of their scores
    return output


class Shadow:
    def __init__(self, plane: DataPlane, metrics: VersionMetrics) -> None:
        self._plane, self._metrics = plane, metrics
        self._running: set[asyncio.Task[None]] = set()
        self._inputs = 0

    def mirror(
        self, version: ServableVersion, inputs: list[Any], parameters: dict[str, Any], outputs: list[Any]
    ) -> None:
        """Send a copy to the version's shadow, if it has one, once the caller's answer is out of our hands."""
        if version.shadow is None:
            return
        if self._inputs and self._inputs + len(inputs) > MAX_INPUTS:
            self._metrics.shadowed(version.name, version.shadow.name, "skipped", len(inputs))
            return
        self._inputs += len(inputs)
        # A task starts when this one next waits, which is for the client to take the answer.
        task = asyncio.create_task(self._compare(version.name, version.shadow, inputs, parameters, outputs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _compare(
        self,
        name: str,
        shadow: ServableVersion,
        inputs: list[Any],
        parameters: dict[str, Any],
        outputs: list[Any],
    ) -> None:
        agreed = 0
        answered = False
        try:
            deadline = time.time() + _TIMEOUT_SECONDS
            reply = await self._plane.predict(shadow.id, inputs, parameters, deadline, caller=_CALLER)
            answered = reply.outputs is not None
            agreed = sum(decision(a) == decision(b) for a, b in zip(outputs, reply.outputs or (), strict=False))
        except ModelwrightError:
            pass  # counted below
        finally:
            self._inputs -= len(inputs)
        if not answered:
            self._metrics.shadowed(name, shadow.name, "error", len(inputs))
            return
        self._metrics.shadowed(name, shadow.name, "yes", agreed)
        self._metrics.shadowed(name, shadow.name, "no", len(inputs) - agreed)
