"""Inference in tensors: texts or token ids in, a task's answers out as BYTES and FP32. Knows no HTTP and no JSON body.

The repository side of the protocol is in `oip_repository.py`.
"""

import json
import sys
from array import array
from collections.abc import Sequence
from typing import Any

from app.contracts.oip import (
    ATTENTION_MASK,
    INPUT_IDS,
    TEXT,
    Tensor,
    TensorSpec,
    Wanted,
    outputs_of,
    usual_outputs,
)
from app.core.errors import InvalidRequest
from app.services.models import ServableVersion
from app.services.predictions import PredictionService

_FLOAT_BYTES = 4
_RANKED = ("score", "logits")
"""The outputs of a text classifier that `classification` ranks."""


class OipService:
    def __init__(self, predictions: PredictionService) -> None:
        self._predictions = predictions

    async def infer(
        self,
        version: ServableVersion,
        inputs: Sequence[Tensor],
        wanted: Sequence[Wanted],
        timeout_ms: int | None,
        *,
        caller: str = "",
        urgent: bool = False,
    ) -> list[Tensor]:
        """The outputs that are `wanted`, or the usual ones. Raises what `PredictionService.ask` raises."""
        given = {tensor.name: tensor for tensor in inputs}
        from_ids = TEXT.name not in given
        wanted = wanted or [Wanted(name) for name in usual_outputs(version.serving, from_ids=from_ids)]
        specs = _specs(version, wanted, from_ids=from_ids)
        rows = _id_rows(given) if from_ids else self._texts(given)
        field = INPUT_IDS.name if from_ids else TEXT.name
        self._predictions.check_count(rows, field)
        found = await self._predictions.ask(
            version, rows, _parameters(version, wanted), timeout_ms, caller=caller, urgent=urgent, field=field
        )
        outputs = found.reply.outputs or []
        width = given[INPUT_IDS.name].shape[1] if from_ids else 0
        return [_tensor(version, spec, ask, outputs, width) for spec, ask in zip(specs, wanted, strict=True)]

    def _texts(self, given: dict[str, Tensor]) -> list[Any]:
        if len(given) > 1:
            raise InvalidRequest("text and input_ids were both given: give one of them", param="inputs")
        texts: list[Any] = []
        for number, element in enumerate(given[TEXT.name].elements):
            where = f"{TEXT.name}[{number}]"
            try:
                texts.append(element.decode())
            except UnicodeDecodeError as exc:
                raise InvalidRequest(f"{where} is not UTF-8 (byte {exc.start:,}): encode it so", param=where) from exc
            self._predictions.check_text(where, texts[-1])
        return texts


def _id_rows(given: dict[str, Tensor]) -> list[Any]:
    """Token ids, each row cut where its mask ends. The worker knows the vocabulary and the longest row."""
    if given.keys() != {INPUT_IDS.name, ATTENTION_MASK.name}:
        raise InvalidRequest(
            f"the inputs are {', '.join(given)}: give text, or input_ids and attention_mask", param="inputs"
        )
    ids, mask = given[INPUT_IDS.name], given[ATTENTION_MASK.name]
    if ids.shape != mask.shape:
        raise InvalidRequest(
            f"input_ids has the shape {list(ids.shape)} and attention_mask {list(mask.shape)}: make them equal",
            param=ATTENTION_MASK.name,
        )
    count, width = ids.shape
    rows: list[Any] = []
    for number in range(count):
        at = number * width
        row = mask.elements[at : at + width]
        real = sum(row)
        if not 0 < real <= width or list(row) != [1] * real + [0] * (width - real):
            raise InvalidRequest(
                f"attention_mask[{number}] must be ones, at least one, then zeros: pad on the right",
                param=f"{ATTENTION_MASK.name}[{number}]",
            )
        rows.append({INPUT_IDS.name: ids.elements[at : at + real]})
    return rows


def _specs(version: ServableVersion, wanted: Sequence[Wanted], *, from_ids: bool) -> list[TensorSpec]:
    """What is wanted, checked against what there is."""
    serving = version.serving
    known = outputs_of(serving)
    if len({ask.name for ask in wanted}) < len(wanted):
        raise InvalidRequest("an output is asked for twice: ask for each once", param="outputs")
    for ask in wanted:
        if ask.name not in known:
            raise InvalidRequest(
                f"{version.name} has no output {ask.name!r}; it has {', '.join(known)}", param="outputs"
            )
        if ask.classification and (serving.task != "text-classification" or ask.name not in _RANKED):
            raise InvalidRequest(
                f"{ask.name} of {version.name} cannot be ranked: ask for classification on score or logits of a text "
                "classifier",
                param="outputs",
            )
        if serving.task == "token-classification" and (ask.name == "logits") != from_ids:
            raise InvalidRequest(
                f"{ask.name} comes with {'text' if from_ids else 'input_ids'} alone: a tagger's entities need the "
                "words, its logits the tokens",
                param="outputs",
            )
    return [known[ask.name] for ask in wanted]


def _parameters(version: ServableVersion, wanted: Sequence[Wanted]) -> dict[str, Any]:
    """What the worker must be asked for."""
    if version.serving.task != "text-classification":
        return {}
    names = {ask.name for ask in wanted}
    best = 1 if version.serving.multi_label and names & {"label", "score"} else 0
    top_k = max([best, *(ask.classification for ask in wanted if ask.name == "score")])
    return {**({"logits": True} if "logits" in names else {}), **({"top_k": top_k} if top_k else {})}


def _tensor(version: ServableVersion, spec: TensorSpec, ask: Wanted, outputs: list[Any], width: int) -> Tensor:
    """One output of every input."""
    labels, count = version.serving.labels, len(outputs)
    if ask.classification:
        ranked = [_ranked(labels, output, ask) for output in outputs]
        each = min(ask.classification, len(labels))
        return Tensor(spec.name, "BYTES", (count, each), [entry for row in ranked for entry in row])
    match spec.name:
        case "label":
            elements: Sequence[Any] = [_best(output)["label"].encode() for output in outputs]
        case "score":
            elements = array("f", [_best(output)["score"] for output in outputs])
        case "labels" | "entities":
            elements = [json.dumps(output[spec.name], ensure_ascii=False).encode() for output in outputs]
        case "logits" if spec.shape[1] == -1:
            size = width * len(labels) * _FLOAT_BYTES
            elements = _floats(b"".join(output["logits"].ljust(size, b"\0") for output in outputs))
            return Tensor(spec.name, spec.datatype, (count, width, len(labels)), elements)
        case "logits":
            elements = _floats(b"".join(output["logits"] for output in outputs))
            return Tensor(spec.name, spec.datatype, (count, len(labels)), elements)
        case _:
            elements = _floats(b"".join(outputs))
            return Tensor(spec.name, spec.datatype, (count, len(elements) // count), elements)
    return Tensor(spec.name, spec.datatype, (count,), elements)


def _best(output: dict[str, Any]) -> Any:
    """Label and score: of several labels, the likeliest."""
    return output if "label" in output else output["scores"][0]


def _ranked(labels: list[str], output: dict[str, Any], ask: Wanted) -> list[bytes]:
    """`value:index:label` of the best classes, best first."""
    if ask.name == "score":
        pairs = [(entry["score"], labels.index(entry["label"])) for entry in output["scores"]]
    else:
        values = _floats(output["logits"]).tolist()
        pairs = sorted(((value, i) for i, value in enumerate(values)), key=lambda pair: -pair[0])
    return [f"{value:f}:{i}:{labels[i]}".encode() for value, i in pairs[: ask.classification]]


def _floats(data: bytes) -> "array[float]":
    """Float32 little-endian, as the worker packs it."""
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
