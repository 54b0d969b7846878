"""Text classification: one row a text; softmax over the labels, or a sigmoid each where several may hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.contracts.manifest import Serving
from workers.codecs.text import TextCodec
from workers.inference.runtime import Float32
from workers.inference.tasks.base import Prepared, token_ids

Probabilities = npt.NDArray[np.float64]


def prepare(codec: TextCodec, serving: Serving, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Prepared:
    """Inputs: `"text"`, `{"text"}` or `{"input_ids"}`. Outputs: `{"label", "score"}`, or `{"labels": [...]}` for
    multi-label.

    Parameters: `top_k` (the best k) or `return_all_scores` add `"scores"`, best first; `threshold` (default
    0.5) is the least probability of a label in a multi-label answer; `logits` adds `"logits"`, float32 little-endian.
    """

    def finish(logits: list[Float32]) -> list[Any]:
        if not (serving.multi_label or parameters):
            return [_best(row, serving) for row in logits]
        values = np.stack(logits).astype(np.float64)
        probabilities = _sigmoid(values) if serving.multi_label else softmax(values)
        outputs = [_output(row, serving, parameters) for row in probabilities]
        if parameters.get("logits"):
            for output, row in zip(outputs, logits, strict=True):
                output["logits"] = row.astype("<f4").tobytes()
        return outputs

    return Prepared(token_ids(codec, inputs), finish)


def _best(logits: Float32, serving: Serving) -> dict[str, Any]:
    """What nearly every call asks for, in a third of the time: exp(best - best) is 1, so its share is 1 / sum."""
    best = int(logits.argmax())
    return {"label": serving.labels[best], "score": 1.0 / float(np.exp(logits - logits[best], dtype=np.float64).sum())}


def _output(row: Probabilities, serving: Serving, parameters: Mapping[str, Any]) -> dict[str, Any]:
    output: dict[str, Any] = {}
    top_k = parameters.get("top_k") or (len(row) if parameters.get("return_all_scores") else 0)
    ranked: list[dict[str, Any]] = []
    if top_k or serving.multi_label:
        order = np.argsort(-row, kind="stable").tolist()
        ranked = [{"label": serving.labels[i], "score": float(row[i])} for i in order]
    if serving.multi_label:
        threshold = parameters.get("threshold", 0.5)
        output["labels"] = [entry for entry in ranked if entry["score"] >= threshold]
    else:
        best = int(row.argmax())
        output.update(label=serving.labels[best], score=float(row[best]))
    if top_k:
        output["scores"] = ranked[:top_k]
    return output


def softmax(logits: Probabilities) -> Probabilities:
    """Over the last axis."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Probabilities = exp / exp.sum(axis=-1, keepdims=True)
    return shares


def _sigmoid(logits: Probabilities) -> Probabilities:
    # Clipped where exp would overflow; beyond 500 the result is 0 or 1 to the last bit anyway.
    shares: Probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500)))
    return shares
