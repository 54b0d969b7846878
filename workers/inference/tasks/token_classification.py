"""Token classification: words to windows, a tag for each word from its first piece, entities with offsets.

Long inputs are read in overlapping windows; the codec says which window speaks for which word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.contracts.manifest import Serving
from workers.codecs.text import TextCodec, Window
from workers.inference.runtime import Float32
from workers.inference.tasks.base import BadInput, Prepared, text_of, token_ids
from workers.inference.tasks.text_classification import softmax

Word = tuple[str, int, int]
"""A word with its [start, end) characters in the text."""


@dataclass(frozen=True, slots=True)
class _Document:
    text: str
    words: list[Word]
    windows: list[Window]
    given_tokens: bool


def prepare(codec: TextCodec, serving: Serving, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Prepared:
    """Inputs: `"text"`, `{"text"}` or `{"tokens": [...]}`. Outputs: `{"entities": [...]}`, each with `label`,
    `text`, `start`, `end` and `score`, the mean probability of its words' tags.

    `start` and `end` count characters of the given text; for tokens, of `" ".join(tokens)`, and the output
    has `"tags"` too: one valid IOB2 tag for each token, however many there are.

    Inputs `{"input_ids"}`, where the first is one all are: outputs `{"logits"}`, float32 little-endian,
    [tokens, labels].
    """
    del parameters  # this task takes none
    if inputs and isinstance(inputs[0], dict) and "input_ids" in inputs[0]:
        return Prepared(token_ids(codec, inputs), _raw)
    documents = [_document(codec, i, value) for i, value in enumerate(inputs)]

    def finish(logits: list[Float32]) -> list[Any]:
        rows = iter(logits)
        return [_output(d, [next(rows) for _ in d.windows], serving.labels) for d in documents]

    return Prepared([window.ids for d in documents for window in d.windows], finish)


def _raw(logits: list[Float32]) -> list[Any]:
    return [{"logits": row.astype("<f4").tobytes()} for row in logits]


def _document(codec: TextCodec, index: int, value: Any) -> _Document:
    if isinstance(value, dict) and "tokens" in value:
        tokens = value["tokens"]
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise BadInput(index, "`tokens` is a list of strings")
        words, at = [], 0
        for token in tokens:
            words.append((token, at, at + len(token)))
            at += len(token) + 1
        return _Document(" ".join(tokens), words, codec.encode_words(tokens), given_tokens=True)
    text = text_of(index, value)
    words = codec.split_words(text)
    return _Document(text, words, codec.encode_words([word for word, _, _ in words]), given_tokens=False)


def _output(document: _Document, logits: list[Float32], labels: list[str]) -> dict[str, Any]:
    tags, scores = ["O"] * len(document.words), [1.0] * len(document.words)
    for window, rows in zip(document.windows, logits, strict=True):
        if not window.first_piece:
            continue
        words, positions = zip(*window.first_piece, strict=True)
        shares = softmax(rows[list(positions)].astype(np.float64))
        for word, best, share in zip(words, shares.argmax(-1).tolist(), shares.max(-1).tolist(), strict=True):
            tags[word], scores[word] = labels[best], share
    tags = repair_iob2(tags)
    output: dict[str, Any] = {"entities": entities(document.text, document.words, tags, scores)}
    if document.given_tokens:
        output["tags"] = tags
    return output


def repair_iob2(tags: Sequence[str]) -> list[str]:
    """`I-x` that continues no entity of type x starts one, as conlleval counts it: it becomes `B-x`."""
    repaired: list[str] = []
    before = "O"
    for tag in tags:
        continues = not tag.startswith("I-") or before[2:] == tag[2:]
        before = tag if continues else f"B-{tag[2:]}"
        repaired.append(before)
    return repaired


def entities(text: str, words: Sequence[Word], tags: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Entities of valid IOB2 `tags` over `words`."""
    spans: list[tuple[int, int]] = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            spans.append((i, i + 1))
        elif tag.startswith("I-"):
            spans[-1] = (spans[-1][0], i + 1)
    return [
        {
            "label": tags[first][2:],
            "text": text[words[first][1] : words[end - 1][2]],
            "start": words[first][1],
            "end": words[end - 1][2],
            "score": sum(scores[first:end]) / (end - first),
        }
        for first, end in spans
    ]
