"""Every task refuses bad rows before it loads a weight, naming file, line and remedy."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from app.contracts.tasks import TASKS, RowShape, TaskSpec
from app.contracts.training import TrainingSpec
from tests.conformance.conftest import ROWS, dataset_file, make_spec
from workers.training.errors import TrainingFailed
from workers.training.prepare import prepare
from workers.training.reporter import Reporter

Rows = list[dict[str, Any]]
SHAPES = [(task, shape) for task in TASKS.values() for shape in task.shapes]
UNSEEN: dict[str, Any] = {"label": "never", "labels": ["never"], "ner_tags": ["B-never"]}
ONE_LABEL: dict[str, Any] = {"label": "same", "labels": [], "ner_tags": ["O"]}
INPUT: dict[str, Any] = {"text": "dog", "tokens": ["dog"]}


@pytest.fixture(params=SHAPES, ids=lambda pair: f"{pair[0].name}-{pair[1].label_field}")
def bad(request: pytest.FixtureRequest, toy_base: Path, tmp_path: Path) -> "Bad":
    task, shape = request.param
    return Bad(task, shape, toy_base, tmp_path)


class Bad:
    """Prepares one job of a shape on given rows."""

    def __init__(self, task: TaskSpec, shape: RowShape, base: Path, folder: Path) -> None:
        self.task, self.shape, self.base, self.folder = task, shape, base, folder
        self.rows = ROWS[frozenset(shape.fields)](40)

    def row(self, label: Any, **changes: Any) -> dict[str, Any]:
        inputs = {name: INPUT[name] for name in self.shape.fields if name != self.shape.label_field}
        return {**inputs, self.shape.label_field: label, **changes}

    def error(self, change: Callable[[TrainingSpec], TrainingSpec] = lambda s: s, **files: Rows) -> TrainingFailed:
        spec = make_spec(self.folder, self.base, self.task, self.shape, "full")
        datasets: Any = {split: dataset_file(self.folder / f"{split}.jsonl", rows) for split, rows in files.items()}
        with pytest.raises(TrainingFailed) as caught:
            prepare(change(spec.model_copy(update={"datasets": datasets})), Reporter(StringIO()))
        assert caught.value.code == "invalid_dataset"
        return caught.value


def test_a_label_unseen_in_training(bad: Bad) -> None:
    unseen = bad.row(UNSEEN[bad.shape.label_field])
    error = bad.error(train=bad.rows, test=[*bad.rows[:5], unseen])
    assert error.message.startswith("test_file, line 6: label 'never' does not occur in the training file; add")
    assert error.param == "test_file"


def test_nothing_to_tell_apart(bad: Bad) -> None:
    error = bad.error(train=[bad.row(ONE_LABEL[bad.shape.label_field])] * 5)
    assert error.message.startswith("training_file: ")
    assert "needed: add rows" in error.message


def test_a_missing_value(bad: Bad) -> None:
    error = bad.error(train=[*bad.rows[:3], {}])
    assert error.message.startswith("training_file, line 4: column ")
    assert error.message.endswith("but is absent")


def test_a_value_of_the_wrong_kind(bad: Bad) -> None:
    error = bad.error(train=[bad.row(4.5), *bad.rows])
    assert f"line 1: column '{bad.shape.label_field}' must be" in error.message
    assert error.message.endswith("but is 4.5")


def test_a_missing_column_is_named_as_mapped(bad: Bad) -> None:
    field = bad.shape.label_field
    error = bad.error(lambda s: s.model_copy(update={"columns": {field: "intent"}}), train=bad.rows)
    assert "line 1: column 'intent' must be" in error.message


def test_one_row(bad: Bad) -> None:
    assert "training_file: 1 row(s); at least 2 are needed" in bad.error(train=bad.rows[:1]).message


def test_too_few_rows_to_hold_any_out(bad: Bad) -> None:
    assert "set test_split to 0" in bad.error(train=bad.rows[:3]).message


def test_text_without_a_token(bad: Bad) -> None:
    blank: dict[str, Any] = {"text": "\u200b", "tokens": ["\u200b"]}
    rows = [
        {**row, **{name: blank[name] for name in row if name in blank}}
        | ({"ner_tags": [tag]} if "ner_tags" in row else {})
        for row, tag in zip(bad.rows, ["B-a", "O"] * 20, strict=True)
    ]
    error = bad.error(train=rows, validation=bad.rows if "text" in rows[0] else rows)
    assert "no row has a token that the base model knows" in error.message


def test_broken_json(bad: Bad) -> None:
    spec = make_spec(bad.folder, bad.base, bad.task, bad.shape, "full")
    Path(spec.datasets["train"].path).write_text('{"text": "a"\n')
    with pytest.raises(TrainingFailed, match="training_file: line 1, column 13: not valid JSON"):
        prepare(spec, Reporter(StringIO()))
