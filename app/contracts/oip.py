"""The tensors of the Open Inference Protocol (V2), by task: their names, datatypes and shapes.

Knows nothing of HTTP, of JSON or of bytes. A size of -1 is free; the first one counts the inputs of a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.contracts.manifest import Serving

Datatype = Literal["BYTES", "FP32", "INT64"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor with its elements in one row, row-major: `bytes`, `int`, or for FP32 an `array("f")`."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    elements: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that was asked for; `classification` is how many classes of it, 0 for the tensor itself."""

    name: str
    classification: int = 0


TEXT = TensorSpec("text", "BYTES", (-1,))
INPUT_IDS = TensorSpec("input_ids", "INT64", (-1, -1))
ATTENTION_MASK = TensorSpec("attention_mask", "INT64", (-1, -1))
INPUTS = {spec.name: spec for spec in (TEXT, INPUT_IDS, ATTENTION_MASK)}
"""`text`, or the two others in its place."""


def outputs_of(serving: Serving) -> dict[str, TensorSpec]:
    """Every output of a version, by name."""
    labels = len(serving.labels)
    match serving.task:
        case "text-classification":
            found = [TensorSpec("label", "BYTES", (-1,)), TensorSpec("score", "FP32", (-1,))]
            found += [TensorSpec("labels", "BYTES", (-1,))] if serving.multi_label else []
            found.append(TensorSpec("logits", "FP32", (-1, labels)))
        case "token-classification":
            found = [TensorSpec("entities", "BYTES", (-1,)), TensorSpec("logits", "FP32", (-1, -1, labels))]
        case "sentence-embedding":
            found = [TensorSpec("embedding", "FP32", (-1, -1))]
    return {spec.name: spec for spec in found}


def usual_outputs(serving: Serving, *, from_ids: bool) -> Sequence[str]:
    """The outputs of a call that names none: all but logits, which are large, where there is anything else."""
    if serving.task == "token-classification":
        return ("logits",) if from_ids else ("entities",)
    return [name for name in outputs_of(serving) if name != "logits"]
