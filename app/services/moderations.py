"""Moderation by a trained classifier of several labels: each label is a category, its score a probability."""

from typing import Any

from app.core.errors import InvalidRequest
from app.services.models import ServableVersion
from app.services.predictions import Prediction, PredictionService

THRESHOLD = 0.5
"""Least score of a category that holds; also what `/predict` takes for such a model."""


class ModerationService:
    def __init__(self, predictions: PredictionService) -> None:
        self._predictions = predictions

    async def moderate(
        self, version: ServableVersion, texts: list[Any], timeout_ms: int | None, *, caller: str = ""
    ) -> Prediction:
        """Raises `InvalidRequest` for a model of another kind, and what `PredictionService.predict` raises."""
        if version.serving.task != "text-classification" or not version.serving.multi_label:
            raise InvalidRequest(
                f"{version.name} is a {version.serving.task} model of one answer a text; moderation takes a text "
                'classifier of several labels: train one on rows {"text", "labels": [...]}, or ask POST /predict',
                code="task_mismatch",
                param="model",
            )
        for number, value in enumerate(texts):
            if not isinstance(value, str):
                raise InvalidRequest(
                    f"input[{number}] must be a string, not {_kind(value)}: this service moderates text only",
                    param=f"input[{number}]",
                )
        return await self._predictions.predict(
            version, texts, {"return_all_scores": True}, timeout_ms, caller=caller, field="input"
        )


def scores(found: Prediction) -> list[dict[str, float]]:
    """For each text, label -> score, in the order of the model's labels."""
    labels = found.version.serving.labels
    answers = [{s["label"]: s["score"] for s in output["scores"]} for output in found.reply.outputs or ()]
    return [{label: answer[label] for label in labels} for answer in answers]


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return "an image" if kind == "image_url" else type(value).__name__
