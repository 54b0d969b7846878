"""Rows to examples, and who is held out."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contracts.tasks import TASKS
from app.contracts.training import DatasetFile
from workers.training.data import Example, duplicates, overlap, read_examples
from workers.training.errors import TrainingFailed
from workers.training.splits import held_out_rows, hold_out, strata

SINGLE, MULTI = TASKS["text-classification"].shapes
(TAGS,) = TASKS["token-classification"].shapes
Format = Literal["jsonl", "csv", "parquet"]


def write(path: Path, fmt: Format, rows: list[dict[str, Any]]) -> DatasetFile:
    if fmt == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif fmt == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return DatasetFile(file_id="file-1", path=str(path), format=fmt, sha256="0" * 64)


def example(text: str, label: str = "a") -> Example:
    return Example({"text": text, "label": label}, 1, text)


@pytest.mark.parametrize(("fmt", "first_line"), [("jsonl", 1), ("csv", 2), ("parquet", 1)])
def test_three_formats_read_alike(tmp_path: Path, fmt: Format, first_line: int) -> None:
    file = write(tmp_path / "rows", fmt, [{"text": "x", "label": "a"}, {"text": "two\nlines", "label": "b"}])
    read = read_examples(file, "train", SINGLE, {})
    assert [e.values for e in read] == [{"text": "x", "label": "a"}, {"text": "two\nlines", "label": "b"}]
    assert [e.line for e in read] == [first_line, first_line + 1]


def test_columns_are_mapped_and_others_ignored(tmp_path: Path) -> None:
    rows = [{"utterance": "x", "intent": "a", "text": 5, "extra": None}] * 2
    file = write(tmp_path / "rows", "jsonl", rows)
    read = read_examples(file, "train", SINGLE, {"text": "utterance", "label": "intent"})
    assert read[0].values == {"text": "x", "label": "a"}


def test_integer_and_boolean_labels_become_strings(tmp_path: Path) -> None:
    file = write(tmp_path / "rows", "jsonl", [{"text": "x", "label": 3}, {"text": "y", "label": True}])
    assert [e.values["label"] for e in read_examples(file, "train", SINGLE, {})] == ["3", "True"]


def test_several_labels_are_a_set(tmp_path: Path) -> None:
    file = write(tmp_path / "rows", "jsonl", [{"text": "x", "labels": ["b", "a", "b"]}, {"text": "y", "labels": []}])
    assert [e.values["labels"] for e in read_examples(file, "train", MULTI, {})] == [["a", "b"], []]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["x", "y"], "ner_tags": ["O"]}, "line 1: 2 tokens but 1 ner_tags; give exactly one tag per token"),
        ({"tokens": ["x"], "ner_tags": ["B_per"]}, "line 1: column 'ner_tags' must be a non-empty list of IOB2 tags"),
        ({"tokens": [], "ner_tags": []}, "line 1: column 'tokens' must be a non-empty list of strings, but is []"),
        ({"tokens": "x", "ner_tags": ["O"]}, "line 1: column 'tokens' must be"),
    ],
)
def test_bad_tag_rows(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "rows", "jsonl", [row, {"tokens": ["x"], "ner_tags": ["O"]}])
    with pytest.raises(TrainingFailed) as caught:
        read_examples(file, "validation", TAGS, {})
    assert caught.value.message.startswith(f"validation_file, {message}")
    assert (caught.value.code, caught.value.param) == ("invalid_dataset", "validation_file")


def test_duplicates_and_overlap_look_at_inputs_only() -> None:
    train = [example("x", "a"), example("x", "b"), example("y")]
    assert duplicates(train) == 1
    assert overlap([example("x", "c"), example("z")], train) == 1


@pytest.mark.parametrize(
    ("fraction", "rows", "held"),
    [("auto", 10, 2), ("auto", 500, 50), ("auto", 50_000, 1000), (0.3, 50_000, 15_000), (0.0, 100, 0), (0.01, 50, 2)],
)
def test_how_many_rows_are_held_out(fraction: float | str, rows: int, held: int) -> None:
    assert held_out_rows(fraction, rows) == held


def test_a_fraction_taken_from_auto_holds_out_the_same_rows() -> None:
    for rows in (7, 123, 4567, 98_765):
        count = held_out_rows("auto", rows)
        assert held_out_rows(count / rows, rows) == count


def test_a_rows_stratum_is_its_rarest_label() -> None:
    assert strata([["a", "b"], ["a"], ["a", "c"], ["c"], []]) == ["b", "a", "c", "c", ""]


labelled = st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abcde")), min_size=4, max_size=200)


@given(rows=labelled, share=st.floats(0.05, 0.5), seed=st.integers(0, 3))
def test_held_out_rows_are_stratified_and_disjoint(rows: list[tuple[int, str]], share: float, seed: int) -> None:
    examples = [example(f"{number} {label}", label) for number, label in rows]
    labels = [e.values["label"] for e in examples]
    kept, held = hold_out(examples, labels, max(2, round(share * len(rows))), (seed, 0))
    assert sorted(kept + held) == list(range(len(examples)))
    assert not {examples[i].key for i in kept} & {examples[i].key for i in held}
    inputs = {label: len({e.key for e in examples if e.values["label"] == label}) for label in labels}
    for label, count in inputs.items():
        there = {label in {labels[i] for i in side} for side in (kept, held)}
        assert there == ({True} if count > 1 else {True, False})
    assert (kept, held) == hold_out(examples, labels, max(2, round(share * len(rows))), (seed, 0))


def test_quotas_follow_the_label_shares() -> None:
    labels = ["a"] * 700 + ["b"] * 250 + ["c"] * 50
    examples = [example(str(i), label) for i, label in enumerate(labels)]
    _, held = hold_out(examples, labels, 100, (0, 0))
    assert Counter(labels[i] for i in held) == {"a": 70, "b": 25, "c": 5}


def test_another_seed_holds_out_other_rows() -> None:
    examples = [example(str(i)) for i in range(100)]
    assert hold_out(examples, ["a"] * 100, 10, (0, 0)) != hold_out(examples, ["a"] * 100, 10, (1, 0))
