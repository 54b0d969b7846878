"""Metrics against the libraries the field trusts, and by hand."""

import random

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score

from workers.training.metrics import classification, entities, entity_scores, majority_baseline, one_hot


def random_tags(rng: random.Random, length: int) -> list[str]:
    return [rng.choice(["O", "B-x", "I-x", "B-y", "I-y"]) for _ in range(length)]


@pytest.mark.parametrize("seed", range(20))
def test_entity_scores_agree_with_seqeval(seed: int) -> None:
    rng = random.Random(seed)
    gold = [random_tags(rng, rng.randint(1, 12)) for _ in range(30)]
    predicted = [[t if rng.random() < 0.7 else rng.choice(["O", "B-x", "I-y"]) for t in tags] for tags in gold]
    metrics, report = entity_scores(gold, predicted)
    assert metrics["f1"] == pytest.approx(f1_score(gold, predicted))
    assert metrics["precision"] == pytest.approx(precision_score(gold, predicted))
    assert metrics["recall"] == pytest.approx(recall_score(gold, predicted))
    per_type = f1_score(gold, predicted, average=None)
    assert [report[kind]["f1"] for kind in ("x", "y")] == pytest.approx(per_type)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-x", "I-x", "O"], {("x", 0, 2)}),
        (["B-x", "B-x"], {("x", 0, 1), ("x", 1, 2)}),
        (["I-x", "I-x"], {("x", 0, 2)}),
        (["B-x", "I-y"], {("x", 0, 1), ("y", 1, 2)}),
        (["B-a-b", "I-a-b"], {("a-b", 0, 2)}),
        (["O"], set()),
        ([], set()),
    ],
)
def test_entity_boundaries(tags: list[str], expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags) == expected


def test_entity_scores_of_nothing_are_zero() -> None:
    metrics, report = entity_scores([["O"]], [["O"]])
    assert metrics == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
    assert report == {}


def test_single_label_by_hand() -> None:
    gold, predicted = one_hot([0, 0, 1, 2], 4), one_hot([0, 1, 1, 1], 4)
    metrics, report = classification(gold, predicted, ["a", "b", "c", "d"])
    assert metrics["accuracy"] == metrics["micro_f1"] == 0.5
    assert report["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2.0}
    assert report["b"]["f1"] == pytest.approx(0.5)
    assert report["c"]["f1"] == 0.0
    assert "d" not in report
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.5 + 0) / 3)


def test_multi_label_accuracy_is_exact_match() -> None:
    gold = np.array([[1, 1], [1, 0], [0, 0]], dtype=np.bool_)
    predicted = np.array([[1, 1], [1, 1], [0, 0]], dtype=np.bool_)
    metrics, _ = classification(gold, predicted, ["a", "b"])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["micro_f1"] == pytest.approx(6 / 7)


def test_majority_baseline_takes_the_commonest_training_row() -> None:
    assert majority_baseline(one_hot([0, 1, 1], 2), one_hot([1, 1, 0, 1], 2)) == pytest.approx(2 / 3)
