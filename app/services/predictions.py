"""One prediction call: inputs checked against the version's manifest, a deadline set, the data plane asked."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from app.contracts.messages import PredictReply
from app.contracts.tasks import TASKS
from app.core.dataplane import DataPlane
from app.core.errors import DeadlineExceeded, InvalidRequest, ModelwrightError, Unavailable
from app.core.metrics import VersionMetrics
from app.core.settings import Settings
from app.core.statistics import Statistics
from app.services.models import ServableVersion
from app.services.shadow import Shadow

_MAX_TOKENS_FIELD = 20_000


@dataclass(frozen=True)
class Prediction:
    version: ServableVersion
    reply: PredictReply


class PredictionService:
    def __init__(self, plane: DataPlane, settings: Settings, metrics: VersionMetrics, statistics: Statistics) -> None:
        self._plane, self._settings, self._metrics, self._statistics = plane, settings, metrics, statistics
        self._shadow = Shadow(plane, metrics)

    async def predict(
        self,
        version: ServableVersion,
        inputs: list[Any],
        parameters: dict[str, Any],
        timeout_ms: int | None,
        *,
        caller: str = "",
        field: str = "inputs",
    ) -> Prediction:
        """Raises `InvalidRequest` naming the input, `Overloaded`, `DeadlineExceeded` or `Unavailable`.

        `field` is what the caller knows `inputs` by.
        """
        self._check(version, inputs, parameters, field)
        return await self.ask(version, inputs, parameters, timeout_ms, caller=caller, field=field)

    async def ask(
        self,
        version: ServableVersion,
        inputs: list[Any],
        parameters: dict[str, Any],
        timeout_ms: int | None,
        *,
        caller: str = "",
        urgent: bool = False,
        field: str = "inputs",
    ) -> Prediction:
        """`predict` for inputs that were checked, also in forms that `/predict` refuses."""
        started = time.time()
        deadline = started + (timeout_ms or self._settings.predict_timeout_ms) / 1000
        try:
            reply = await self._plane.predict(
                version.id, inputs, parameters, deadline, caller=caller, urgent=urgent, model=version.name
            )
            _refuse_failed(version, reply, field)
        except ModelwrightError as exc:
            self._metrics.failed(version.name, exc.code)
            self._statistics.failed(version.id, time.time() - started)
            raise
        outputs = reply.outputs or []
        seconds = time.time() - started
        asyncio.get_running_loop().call_soon(self._count, version, len(outputs), reply.batch_size, seconds)
        self._shadow.mirror(version, inputs, parameters, outputs)
        return Prediction(version, reply)

    def _count(self, version: ServableVersion, outputs: int, batch_size: int, seconds: float) -> None:
        """After the answer is out: the caller waits for that."""
        self._metrics.answered(version.name, outputs, seconds)
        self._statistics.answered(version.id, outputs, batch_size, seconds)

    def check_count(self, inputs: list[Any], field: str) -> None:
        if not 1 <= len(inputs) <= self._settings.max_inputs:
            raise InvalidRequest(
                f"{field} has {len(inputs):,} entries; send 1 to {self._settings.max_inputs:,} a call", param=field
            )

    def check_text(self, where: str, value: Any) -> None:
        if not isinstance(value, str):
            raise InvalidRequest(f"{where} must be a string, not {type(value).__name__}", param=where)
        _refuse_half_pairs(where, value)
        self._check_length(where, len(value))

    def _check(self, version: ServableVersion, inputs: list[Any], parameters: dict[str, Any], field: str) -> None:
        spec = TASKS[version.serving.task]
        self.check_count(inputs, field)
        for name in parameters:
            if name not in spec.parameters:
                known = ", ".join(sorted(spec.parameters)) or "none"
                raise InvalidRequest(
                    f"{spec.name} has no parameter {name[:64]!r}; it takes {known}",
                    param=f"parameters.{name[:64]}",
                )
        longest = self._settings.max_input_chars
        for number, value in enumerate(inputs):
            if type(value) is not str or len(value) > longest or not value.isascii():
                self._check_input(f"{field}[{number}]", value, spec.input_fields)

    def _check_input(self, where: str, value: Any, fields: frozenset[str]) -> None:
        if isinstance(value, dict):
            if len(value) != 1 or (name := next(iter(value))) not in fields:
                raise InvalidRequest(
                    f"{where} must be a string or an object with one field of {', '.join(sorted(fields))}",
                    param=where,
                )
            where, value = f"{where}.{name}", value[name]
            if name == "tokens":
                self._check_tokens(where, value)
                return
        self.check_text(where, value)

    def _check_tokens(self, where: str, value: Any) -> None:
        if not isinstance(value, list) or not value or not all(isinstance(t, str) and t for t in value):
            raise InvalidRequest(f"{where} must be a non-empty list of non-empty strings", param=where)
        if len(value) > _MAX_TOKENS_FIELD:
            raise InvalidRequest(f"{where} has {len(value):,} tokens; the limit is {_MAX_TOKENS_FIELD:,}", param=where)
        _refuse_half_pairs(where, "".join(value))
        self._check_length(where, sum(len(t) + 1 for t in value) - 1)

    def _check_length(self, where: str, size: int) -> None:
        if size > self._settings.max_input_chars:
            raise InvalidRequest(
                f"{where} has {size:,} characters; the limit is {self._settings.max_input_chars:,}: split the text, or "
                "raise MODELWRIGHT_MAX_INPUT_CHARS",
                code="input_too_long",
                param=where,
            )


def _refuse_half_pairs(where: str, text: str) -> None:
    """JSON may hold half of a surrogate pair, which is no text and cannot be sent on."""
    if text.isascii():  # a flag of the string, not a scan
        return
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(
            f"{where} has half of a surrogate pair at character {exc.start}: send the whole pair, or leave it out",
            param=where,
        ) from exc


def _refuse_failed(version: ServableVersion, reply: PredictReply, field: str) -> None:
    """Raises for an error that the worker reports."""
    if reply.error == "invalid_input":
        where = (reply.param or "inputs").replace("inputs", field, 1)
        raise InvalidRequest(reply.message, code=reply.error, param=where)
    if reply.error == "deadline_exceeded":
        raise DeadlineExceeded(reply.message, code=reply.error)
    if reply.error:
        raise Unavailable(f"{version.name}: {reply.message}", code=reply.error)
