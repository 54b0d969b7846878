"""The splits of a job: read, held out where not given, checked against each other, and reported.

Joins `data.py` (rows) and `splits.py` (who is held out) with what a task calls a label.
"""

from collections.abc import Sequence
from typing import Any

from app.contracts.hyperparameters import Hyperparameters
from app.contracts.training import Split, TrainingSpec
from workers.training.data import Example, duplicates, invalid, overlap, read_examples, row_shape
from workers.training.reporter import Reporter
from workers.training.splits import held_out_rows, hold_out, strata
from workers.training.tasks.base import Task

Splits = dict[Split, list[Example]]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT: tuple[Split, ...] = ("test", "validation")


def load_splits(spec: TrainingSpec, task: Task) -> tuple[Splits, dict[Split, float]]:
    """The splits with `task.labels` set, and the fraction of the training file that each held-out split took.

    Without a test file a test split is held out only when there is no validation file either (`test_split:
    auto`).
    """
    shape = row_shape(spec)
    given: Splits = {split: read_examples(file, split, shape, spec.columns) for split, file in spec.datasets.items()}
    _learn_labels(task, given)
    rows = len(given["train"])
    splits: Splits = dict(given)
    fractions: dict[Split, float] = {"validation": 0.0, "test": 0.0}
    wanted = _wanted(spec.hyperparameters, given)
    for number, split in enumerate(HELD_OUT):
        count = held_out_rows(wanted[split], rows)
        if not count:
            continue
        train = splits["train"]
        stratum = strata([task.row_labels(e) for e in train])
        kept, held = hold_out(train, stratum, count, seed=(spec.seed, number))
        splits["train"], splits[split] = [train[i] for i in kept], [train[i] for i in held]
        fractions[split] = count / rows
        if len(held) < 2 or len(kept) < 2:
            raise invalid(
                "train",
                f"{rows} rows leave {len(held)} for {split} and {len(kept)} for training; at least 2 with "
                f"different inputs are needed: add rows, give a {split} file, or set {split}_split to 0",
            )
    return {split: splits[split] for split in SPLITS if split in splits}, fractions


def _wanted(hp: Hyperparameters, given: Splits) -> dict[Split, float | str]:
    """What to hold out of the training rows, `auto` or a fraction; 0 for a split that has its own file."""
    validation = 0.0 if "validation" in given else hp.validation_split
    test: float | str = hp.test_split
    if "test" in given or ("validation" in given and test == "auto"):
        test = 0.0
    return {"validation": validation, "test": test}


def _learn_labels(task: Task, given: Splits) -> None:
    names = {name for example in given["train"] for name in task.row_labels(example)}
    try:
        task.labels = task.vocabulary(_in_order(names))
    except ValueError as error:
        raise invalid("train", str(error)) from error
    for split, examples in given.items():
        for example in examples:
            unknown = [name for name in task.row_labels(example) if name not in names]
            if unknown:
                message = (
                    f"label {unknown[0]!r} does not occur in the training file; add training rows with it, "
                    "or remove the line"
                )
                raise invalid(split, message, example.line)


def _in_order(names: set[str]) -> list[str]:
    """Sorted; numbers by value, so that "10" follows "9"."""
    return sorted(names, key=int) if all(n.isdecimal() for n in names) else sorted(names)


def report(splits: Splits, reporter: Reporter) -> dict[str, Any]:
    """Figures of `Finished.datasets`; what is odd is also said as a note, and nothing is dropped."""
    figures: dict[str, Any] = {}
    for split, examples in splits.items():
        repeated = duplicates(examples)
        shared = 0 if split == "train" else overlap(examples, splits["train"])
        figures[split] = {"rows": len(examples), "duplicates": repeated, "overlap_with_train": shared}
        if repeated:
            reporter.note(
                f"{repeated} of {len(examples)} {split} rows repeat an earlier input; none was dropped",
                level="warn",
                split=split,
                duplicates=repeated,
            )
        if shared:
            reporter.note(
                f"{shared} of {len(examples)} {split} rows also occur in training: they flatter its metrics",
                level="warn",
                split=split,
                overlap=shared,
            )
    return figures


def check_tokens(
    split: Split, examples: Sequence[Example], counts: Sequence[int], special: int, reporter: Reporter
) -> None:
    """Rows that hold no token but the special ones teach nothing: all of them is an error, some a warning."""
    empty = [e.line for e, count in zip(examples, counts, strict=True) if count <= special]
    if len(empty) == len(examples):
        raise invalid(split, "no row has a token that the base model knows; check the text column", empty[0])
    if empty:
        reporter.note(
            f"{len(empty)} {split} rows have no token (first: line {empty[0]})", level="warn", rows=len(empty)
        )
