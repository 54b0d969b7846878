"""One prediction call: inputs checked against the version's manifest, a deadline set, the data plane asked."""

import time
from dataclasses import dataclass
from typing import Any

from app.contracts.messages import PredictReply
from app.contracts.tasks import TASKS
from app.core.dataplane import DataPlane
from app.core.errors import DeadlineExceeded, InvalidRequest, Unavailable
from app.core.settings import Settings
from app.services.models import ServableVersion

_MAX_TOKENS_FIELD = 20_000


@dataclass(frozen=True)
class Prediction:
    version: ServableVersion
    reply: PredictReply


class PredictionService:
    def __init__(self, plane: DataPlane, settings: Settings) -> None:
        self._plane, self._settings = plane, settings

    async def predict(
        self, version: ServableVersion, inputs: list[Any], parameters: dict[str, Any], timeout_ms: int | None
    ) -> Prediction:
        """Raises `InvalidRequest` naming the input, `Overloaded`, `DeadlineExceeded` or `Unavailable`."""
        self._check(version, inputs, parameters)
        deadline = time.time() + (timeout_ms or self._settings.predict_timeout_ms) / 1000
        reply = await self._plane.predict(version.id, inputs, parameters, deadline)
        if reply.error == "invalid_input":
            raise InvalidRequest(reply.message, code=reply.error, param=reply.param or "inputs")
        if reply.error == "deadline_exceeded":
            raise DeadlineExceeded(reply.message, code=reply.error)
        if reply.error:
            raise Unavailable(f"{version.name}: {reply.message}", code=reply.error)
        return Prediction(version, reply)

    def _check(self, version: ServableVersion, inputs: list[Any], parameters: dict[str, Any]) -> None:
        spec = TASKS[version.serving.task]
        if not 1 <= len(inputs) <= self._settings.max_inputs:
            raise InvalidRequest(
                f"inputs has {len(inputs):,} entries; send 1 to {self._settings.max_inputs:,} a call",
                param="inputs",
            )
        for name in parameters:
            if name not in spec.parameters:
                known = ", ".join(sorted(spec.parameters)) or "none"
                raise InvalidRequest(
                    f"{spec.name} has no parameter {name[:64]!r}; it takes {known}",
                    param=f"parameters.{name[:64]}",
                )
        for number, value in enumerate(inputs):
            self._check_input(number, value, spec.input_fields)

    def _check_input(self, number: int, value: Any, fields: frozenset[str]) -> None:
        where = f"inputs[{number}]"
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
        if not isinstance(value, str):
            raise InvalidRequest(f"{where} must be a string, not {type(value).__name__}", param=where)
        self._check_length(where, len(value))

    def _check_tokens(self, where: str, value: Any) -> None:
        if not isinstance(value, list) or not value or not all(isinstance(t, str) and t for t in value):
            raise InvalidRequest(f"{where} must be a non-empty list of non-empty strings", param=where)
        if len(value) > _MAX_TOKENS_FIELD:
            raise InvalidRequest(f"{where} has {len(value):,} tokens; the limit is {_MAX_TOKENS_FIELD:,}", param=where)
        self._check_length(where, sum(len(t) + 1 for t in value) - 1)

    def _check_length(self, where: str, size: int) -> None:
        if size > self._settings.max_input_chars:
            raise InvalidRequest(
                f"{where} has {size:,} characters; the limit is {self._settings.max_input_chars:,}: split the text, or "
                "raise MODELWRIGHT_MAX_INPUT_CHARS",
                code="input_too_long",
                param=where,
            )
