"""The training child of the chaos runs: the toy task for base model `toy-counter`, the real one for all others.

A toy job goes the real way (entry, reporter, loop, checkpoints, sealed artifact); only the objective is a recurrence
over numpy numbers, so that 1,000 jobs cost minutes. Its final state depends on every step, on their order and on
random numbers drawn at each: a resume that is not exact shows. Each step of either kind is written to a journal,
which is how the checker knows what a killed process had done.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from app.contracts.manifest import MANIFEST_NAME, FileEntry, Manifest
from app.contracts.training import Finished, Resolved, TrainingSpec
from workers.training import entry, loop
from workers.training.checkpoints import Checkpoints
from workers.training.recipe import Recipe
from workers.training.reporter import Reporter

BASE = "toy-counter"
JOURNAL, STEP_SECONDS = "CHAOS_JOURNAL", "CHAOS_STEP_SECONDS"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Numbers:
    """What a batch is to the loop: rows and tokens to count."""

    input_ids: NDArray[np.float64]

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


class Counter:
    """A state of 64 numbers, mixed with the batch and with random numbers at each step."""

    learning_rate = 0.5

    def __init__(self, seed: int) -> None:
        self.state = np.linspace(0.1, 0.9, 64)
        self._random = np.random.default_rng(seed)

    def step(self, micro_batches: Sequence[Any]) -> float:
        for batch in micro_batches:
            noise = self._random.random(64)
            self.state = np.sin(3.1 * self.state + batch.input_ids.sum() + noise)
        return float(np.abs(self.state).mean())

    def keep(self) -> None:
        """No validation, no best epoch."""

    def restore(self) -> None:
        """The last weights are the best."""

    def save(self, folder: Path) -> None:
        save_file({"state": self.state}, folder / "weights.safetensors")
        (folder / "random.json").write_text(json.dumps(self._random.bit_generator.state))

    def load(self, folder: Path) -> None:
        self.state = load_file(folder / "weights.safetensors")["state"]
        self._random.bit_generator.state = json.loads((folder / "random.json").read_text())


def steps_of(rows: Sequence[bytes], batch_size: int, seed: int, epoch: int) -> list[list[partial[Numbers]]]:
    """The epoch's steps over the lines of the training file, in an order of its own."""
    values = np.array([crc32(row) / 2**32 for row in rows])
    order = np.random.default_rng((seed, epoch)).permutation(len(values))
    return [[partial(Numbers, values[order[i : i + batch_size]])] for i in range(0, len(values), batch_size)]


def weights(state: NDArray[np.float64]) -> bytes:
    """The artifact's weights file."""
    return save({"state": state})


def expected_weights(rows: Sequence[bytes], batch_size: int, epochs: int, seed: int) -> str:
    """SHA-256 of what an unbroken run leaves: the same steps without loop, process or checkpoint."""
    counter = Counter(seed)
    for epoch in range(1, epochs + 1):
        for step in steps_of(rows, batch_size, seed, epoch):
            counter.step([build() for build in step])
    return sha256(weights(counter.state)).hexdigest()


def run(spec: TrainingSpec, reporter: Reporter) -> None:
    """Stands where `workers.training.job.run` stands for a real job."""
    reporter.phase("validating_files")
    rows = Path(spec.datasets["train"].path).read_bytes().splitlines()
    recipe = _recipe(spec, len(rows))
    resolved = Resolved(
        hyperparameters=recipe.hyperparameters(),
        recipe=asdict(recipe),
        rows={"train": len(rows)},
        labels=["a", "b"],
        total_steps=recipe.total_steps,
        device="cpu",
        threads=1,
        attention="none",
    )
    reporter.emit(resolved)
    output, counter = Path(spec.output), Counter(spec.seed)
    if spec.start_from:
        counter.load(Path(spec.start_from))
    trained = loop.Trained(0, 0, 0, 0.0, None)
    if not spec.export_only:
        with reporter.table(output / "metrics.csv", []):
            reporter.phase("training")
            trained = loop.train(
                objective=counter,
                recipe=recipe,
                steps=cast(Any, partial(steps_of, rows, recipe.batch_size, spec.seed)),
                validate=None,
                metric="loss",
                early_stopping=None,
                checkpoints=Checkpoints(spec, resolved, reporter),
                reporter=reporter,
            )
    reporter.phase("exporting")
    _export(Path(spec.base_model_path) / "artifact", output / "artifact", counter)
    reporter.emit(
        Finished(
            metrics={},
            datasets={},
            parity={},
            trained_tokens=trained.tokens,
            train_seconds=trained.seconds,
            samples_per_second=1.0,
        )
    )


def _recipe(spec: TrainingSpec, rows: int) -> Recipe:
    asked = spec.hyperparameters
    assert isinstance(asked.batch_size, int)
    assert isinstance(asked.n_epochs, int)
    return Recipe(
        n_epochs=asked.n_epochs,
        batch_size=asked.batch_size,
        learning_rate=0.5,
        warmup_steps=0,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        optim="adamw",
        gradient_accumulation_steps=1,
        max_grad_norm=0.0,
        max_length=16,
        label_smoothing_factor=0.0,
        word_dropout=0.0,
        mixed_precision="no",
        class_weights="none",
        validation_split=0.0,
        test_split=0.0,
        steps_per_epoch=-(-rows // asked.batch_size),
        head_learning_rate_factor=1.0,
    )


def _export(prebuilt: Path, artifact: Path, counter: Counter) -> None:
    """The prebuilt toy graph with this run's state beside it."""
    shutil.copytree(prebuilt, artifact)
    data = weights(counter.state)
    (artifact / _WEIGHTS).write_bytes(data)
    manifest = Manifest.model_validate_json((artifact / MANIFEST_NAME).read_bytes())
    entry_ = FileEntry(sha256=sha256(data).hexdigest(), bytes=len(data))
    sealed = manifest.model_copy(update={"files": {**manifest.files, _WEIGHTS: entry_}}).sealed()
    (artifact / MANIFEST_NAME).write_text(sealed.model_dump_json())


def _keep_journal(spec: dict[str, Any]) -> None:
    """Write `fence step time` after each step, and make steps last long enough to be hit."""
    pause = float(os.environ[STEP_SECONDS])
    fence = Path(spec["checkpoint_folder"] or "0").name
    journal = os.open(f"{os.environ[JOURNAL]}/{spec['job_id']}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    plain = loop._Progress.step

    def step(self: Any, batches: Any) -> None:
        time.sleep(pause)
        plain(self, batches)
        os.write(journal, f"{fence} {self.steps} {time.monotonic()}\n".encode())

    loop._Progress.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_bytes())
    _keep_journal(asked)
    if asked["base_model"] == BASE:
        sys.modules["workers.training.job"] = sys.modules[__name__]  # entry finds `run` above; torch is not loaded
    entry.leave(entry.main(sys.argv[1:]))
