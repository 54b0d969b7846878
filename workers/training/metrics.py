"""Metrics as the field counts them, over plain lists and arrays. Knows no model, no tensor and no file."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Report = dict[str, dict[str, float]]


def _scores(true_positives: float, predicted: float, gold: float) -> dict[str, float]:
    """Precision, recall, F1 (0 where undefined) and support."""
    precision = true_positives / predicted if predicted else 0.0
    recall = true_positives / gold if gold else 0.0
    f1 = 2 * true_positives / (predicted + gold) if predicted + gold else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": float(gold)}


def one_hot(indices: Sequence[int] | Ints, labels: int) -> Bools:
    """[rows, labels], true at each row's index."""
    hot = np.zeros((len(indices), labels), dtype=np.bool_)
    hot[np.arange(len(indices)), np.asarray(indices, dtype=np.int64)] = True
    return hot


def classification(gold: Bools, predicted: Bools, labels: Sequence[str]) -> tuple[dict[str, float], Report]:
    """Accuracy (exact match of the row), macro and micro F1, and scores per label; both arrays are [rows,
    labels].

    Macro F1 averages over the labels that occur in either array, as scikit-learn does.
    """
    hits, guesses, truth = ((a).sum(axis=0) for a in (gold & predicted, predicted, gold))
    report = {
        label: _scores(float(hits[i]), float(guesses[i]), float(truth[i]))
        for i, label in enumerate(labels)
        if guesses[i] or truth[i]
    }
    metrics = {
        "accuracy": float((gold == predicted).all(axis=1).mean()),
        "macro_f1": float(np.mean([r["f1"] for r in report.values()])) if report else 0.0,
        "micro_f1": _scores(float(hits.sum()), float(guesses.sum()), float(truth.sum()))["f1"],
    }
    return metrics, report


def majority_baseline(gold: Bools, train: Bools) -> float:
    """Accuracy on `gold` of always answering the commonest row of `train`."""
    rows, counts = np.unique(train, axis=0, return_counts=True)
    return float((gold == rows[counts.argmax()]).all(axis=1).mean())


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, last + 1) of each entity, with the boundaries of the `conlleval` script.

    An entity starts at `B-`, and at an `I-` that follows `O` or another type (Tjong Kim Sang and De Meulder
    2003).
    """
    found, start, kind = set(), 0, ""
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        if kind and (prefix != "I" or this != kind):
            found.add((kind, start, at))
            kind = ""
        if this and not kind:
            start, kind = at, this
    return found


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Entity precision, recall, F1 (micro) and tag accuracy; scores per type. One tag list a sentence."""
    hits: Counter[str] = Counter()
    guesses: Counter[str] = Counter()
    truth: Counter[str] = Counter()
    right = total = 0
    for sentence, guess in zip(gold, predicted, strict=True):
        true, found = entities(sentence), entities(guess)
        hits.update(kind for kind, _, _ in true & found)
        guesses.update(kind for kind, _, _ in found)
        truth.update(kind for kind, _, _ in true)
        right += sum(a == b for a, b in zip(sentence, guess, strict=True))
        total += len(sentence)
    overall = _scores(hits.total(), guesses.total(), truth.total())
    report = {k: _scores(hits[k], guesses[k], truth[k]) for k in sorted(guesses.keys() | truth.keys())}
    metrics = {name: overall[name] for name in ("f1", "precision", "recall")}
    return {**metrics, "accuracy": right / total if total else 0.0}, report
