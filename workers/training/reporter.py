"""Says what happens: JSON lines to the parent, one row a step to `metrics.csv`. Also hears the parent's stop.

Knows the messages of `app/contracts/training.py`; knows nothing of training.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from app.contracts.training import Evaluation, Note, Phase, Split, Step
from workers.training.errors import Stopped

COLUMNS = ("step", "epoch", "train_loss", "learning_rate")


class Reporter:
    """One per job. `stop` may be called from a signal handler."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stopped = False
        self._table: _Table | None = None

    def stop(self) -> None:
        """Ask the job to end at its next check."""
        self._stopped = True

    def check(self) -> None:
        """Raises `Stopped` once `stop` was called."""
        if self._stopped:
            raise Stopped

    def emit(self, message: BaseModel) -> None:
        self._stream.write(message.model_dump_json() + "\n")
        self._stream.flush()

    def phase(self, phase: Any) -> None:
        self.check()
        self.emit(Phase(phase=phase))

    def note(self, message: str, *, level: Any = "info", **data: Any) -> None:
        self.emit(Note(level=level, message=message, data=data or None))

    @contextmanager
    def table(self, path: Path, metrics: Sequence[str]) -> Iterator[None]:
        """Keep `metrics.csv` meanwhile; `metrics` name the evaluation columns."""
        with path.open("w+", newline="", encoding="utf-8") as file:
            self._table = _Table(file, [f"eval_{name}" for name in metrics])
            try:
                yield
            finally:
                self._table.end_row()
                self._table = None

    def table_state(self) -> tuple[bytes, dict[str, Any]]:
        """The rows written so far, and the one still open: what a checkpoint keeps of the table."""
        return self._table.state() if self._table else (b"", {})

    def restore_table(self, rows: bytes, open_row: dict[str, Any]) -> None:
        """Go on from `table_state`'s answer."""
        if self._table:
            self._table.restore(rows, open_row)

    def step(self, step: Step) -> None:
        self.emit(step)
        if self._table:
            self._table.start_row(step.model_dump(include=set(COLUMNS)))

    def evaluation(self, step: int, epoch: float, split: Split, metrics: dict[str, float]) -> None:
        self.emit(Evaluation(step=step, epoch=epoch, split=split, metrics=metrics))
        if self._table and split == "validation":
            self._table.add({f"eval_{name}": value for name, value in metrics.items()})


class _Table:
    """CSV whose last row stays open until the next one starts: an evaluation follows its step."""

    def __init__(self, file: TextIO, evaluation_columns: list[str]) -> None:
        self._file = file
        self._writer = csv.DictWriter(file, [*COLUMNS, *evaluation_columns], extrasaction="ignore")
        self._writer.writeheader()
        self._row: dict[str, Any] = {}

    def start_row(self, values: dict[str, Any]) -> None:
        self.end_row()
        self._row = dict(values)

    def add(self, values: dict[str, Any]) -> None:
        self._row.update(values)

    def end_row(self) -> None:
        if self._row:
            self._writer.writerow(self._row)
        self._row = {}

    def state(self) -> tuple[bytes, dict[str, Any]]:
        self._file.flush()
        return Path(self._file.name).read_bytes(), self._row

    def restore(self, rows: bytes, open_row: dict[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(rows.decode())
        self._row = open_row
