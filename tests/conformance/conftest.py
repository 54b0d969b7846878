"""One trained toy model per allowed (row shape, tuner) pair of the menu, shared by all conformance tests."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from app.contracts.hyperparameters import Hyperparameters
from app.contracts.tasks import TASKS, RowShape, TaskSpec
from app.contracts.training import CHILD_MESSAGE, DatasetFile, Finished, TrainingSpec
from app.contracts.tuners import Tuner
from tests import toys

ROWS = {
    frozenset({"text", "label"}): toys.text_rows,
    frozenset({"text", "labels"}): toys.multi_label_rows,
    frozenset({"tokens", "ner_tags"}): toys.tag_rows,
}
EPOCHS = 6
PAIRS = [(task, shape, tuner) for task in TASKS.values() for shape in task.shapes for tuner in sorted(task.tuners)]


@dataclass(frozen=True)
class Case:
    """A trained toy."""

    spec: TrainingSpec
    messages: list[BaseModel]

    @property
    def artifact(self) -> Path:
        return Path(self.spec.output) / "artifact"

    @property
    def finished(self) -> Finished:
        last = self.messages[-1]
        assert isinstance(last, Finished), last
        return last


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Toys are too small to share: with two threads, waiting for each other takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.build_toy_base(tmp_path_factory.mktemp("toy") / "base")


def dataset_file(path: Path, rows: list[dict[str, Any]]) -> DatasetFile:
    toys.write_jsonl(path, rows)
    return DatasetFile(file_id="file-toy", path=str(path), format="jsonl", sha256="0" * 64)


def make_spec(folder: Path, base: Path, task: TaskSpec, shape: RowShape, tuner: str) -> TrainingSpec:
    rows = ROWS[frozenset(shape.fields)](240)
    return TrainingSpec(
        job_id="ftjob-toy",
        task=task.name,
        multi_label=shape.multi_label,
        base_model="toy",
        base_model_path=str(base),
        base_model_revision="0",
        datasets={"train": dataset_file(folder / "train.jsonl", rows)},
        tuner=TypeAdapter(Tuner).validate_python(tuner),
        hyperparameters=Hyperparameters(n_epochs=EPOCHS, batch_size=16, learning_rate=5e-3),
        seed=1,
        output=str(folder / "output"),
    )


def read_messages(stream: io.StringIO) -> list[BaseModel]:
    return [CHILD_MESSAGE.validate_json(line) for line in stream.getvalue().splitlines()]


@pytest.fixture(scope="session", params=PAIRS, ids=lambda p: f"{p[0].name}-{p[1].label_field}-{p[2]}")
def case(request: pytest.FixtureRequest, toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    from workers.training.job import run
    from workers.training.reporter import Reporter

    task, shape, tuner = request.param
    spec = make_spec(tmp_path_factory.mktemp("case"), toy_base, task, shape, tuner)
    stream = io.StringIO()
    run(spec, Reporter(stream))
    return Case(spec, read_messages(stream))
