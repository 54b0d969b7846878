"""What every scenario is given: a seed, a scale, folders, base models, clusters, a progress bar."""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests import toy_artifact, toys
from tests.chaos import toy
from tests.chaos.cluster import Cluster
from tests.chaos.report import Row
from tests.chaos.serving.fleet import Fleet

REAL = "toy-bert"


@dataclass
class Harness:
    folder: Path
    seed: int
    scale: float
    tell: Callable[[str, float], None]
    """What is being done, and the share of the scenario that is behind us."""

    def __post_init__(self) -> None:
        rows = toys.text_rows(20)
        self.rows = toys.write_jsonl(self.folder / "rows.jsonl", rows).read_bytes()
        self.real_rows = toys.write_jsonl(self.folder / "real.jsonl", toys.text_rows(160)).read_bytes()

    @cached_property
    def models(self) -> Path:
        """Base models to train from; made for the first cluster, serving needs none."""
        build_models(self.folder / "models")
        return self.folder / "models"

    def times(self, full: int, least: int = 1) -> int:
        """A count of the long run, made smaller for a short one."""
        return max(least, round(full * self.scale))

    def random(self, line: int) -> random.Random:
        """Each scenario draws its own numbers: one alone does what it does among the others."""
        return random.Random(f"{self.seed}-{line}")

    @contextmanager
    def cluster(self, name: str, **options: Any) -> Iterator[Cluster]:
        with Cluster(self.folder / name, self.models, **options) as cluster:
            yield cluster
        shutil.rmtree(self.folder / name / "store", ignore_errors=True)

    @contextmanager
    def fleet(self, name: str, **options: Any) -> Iterator[Fleet]:
        with Fleet(self.folder / name, **options) as fleet:
            yield fleet


def build_models(folder: Path) -> None:
    """`toy-counter`, whose artifact is prebuilt, and a tiny random BERT."""
    toys.build_toy_base(folder / REAL)
    base = folder / toy.BASE
    toy_artifact.build(base / "artifact", labels=("a", "b"))
    (base / "config.json").write_text("{}")
    shutil.copy(base / "artifact" / "tokenizer.json", base)
    (base / "model.safetensors").write_bytes(toy.weights(toy.Counter(0).state))


def in_parallel(tasks: Sequence[Callable[[], Any]], at_once: int) -> list[Any]:
    """Their results, in order; the first error is raised when all have ended."""
    with ThreadPoolExecutor(at_once) as pool:
        futures: list[Future[Any]] = [pool.submit(task) for task in tasks]
    return [future.result() for future in futures]


Scenario = Callable[[Harness], list[Row]]
