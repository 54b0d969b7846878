"""Sentence vectors: texts and token ids checked, the data plane asked, float32 bytes made into numbers.

How a vector comes about is the graph's business, cutting it to `dimensions` the worker's.
"""

import sys
from array import array
from typing import Any

from app.core.errors import InvalidRequest
from app.core.settings import Settings
from app.services.models import ServableVersion
from app.services.predictions import Prediction, PredictionService


class EmbeddingService:
    def __init__(self, predictions: PredictionService, settings: Settings) -> None:
        self._predictions, self._settings = predictions, settings

    async def embed(
        self,
        version: ServableVersion,
        given: str | list[Any],
        dimensions: int | None,
        timeout_ms: int | None,
        *,
        caller: str = "",
    ) -> Prediction:
        """`given` as OpenAI takes it: a text, a list of texts, a list of token ids, or a list of such lists.

        Its outputs are what `vectors` reads. Raises what `PredictionService.predict` raises.
        """
        if version.serving.task != "sentence-embedding":
            raise InvalidRequest(
                f"{version.name} is a {version.serving.task} model and has no sentence vectors: name an encoder of "
                "GET /v1/models, such as all-MiniLM-L6-v2, or ask POST /predict",
                code="task_mismatch",
                param="model",
            )
        # A list of whole numbers is one input; whatever else a list holds is one each.
        values = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
        self._predictions.check_count(values, "input")
        inputs = [self._checked(f"input[{number}]", value, version) for number, value in enumerate(values)]
        parameters = {} if dimensions is None else {"dimensions": dimensions}
        return await self._predictions.ask(version, inputs, parameters, timeout_ms, caller=caller, field="input")

    def _checked(self, where: str, value: Any, version: ServableVersion) -> Any:
        """An input as the worker takes it."""
        if isinstance(value, list):
            _check_ids(where, value, version)
            return {"input_ids": value}
        self._predictions.check_text(where, value)
        return value


def vectors(found: Prediction, dimensions: int | None) -> list[bytes]:
    """Each output's numbers, float32 little-endian. Raises `InvalidRequest` when the model has fewer `dimensions`."""
    rows: list[bytes] = found.reply.outputs or []
    if dimensions is not None and rows and len(rows[0]) // 4 < dimensions:
        raise InvalidRequest(
            f"dimensions is {dimensions:,}; {found.version.name} has {len(rows[0]) // 4:,}: give that or fewer",
            param="dimensions",
        )
    return rows


def floats(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _check_ids(where: str, ids: list[Any], version: ServableVersion) -> None:
    """What can be checked without the tokenizer; the worker knows the vocabulary."""
    if not ids or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise InvalidRequest(f"{where} must be a text or a non-empty list of token ids: whole numbers", param=where)
    if len(ids) > version.serving.max_length:
        raise InvalidRequest(
            f"{where} has {len(ids):,} token ids; {version.name} takes {version.serving.max_length:,}, special tokens "
            "included: split it",
            code="input_too_long",
            param=where,
        )
