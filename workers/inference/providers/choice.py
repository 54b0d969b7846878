"""Which provider a version gets under `auto`: the fastest on this machine among those that answer alike. Measured.

The answer is remembered in a file of this host: it depends on the processor and the graph, not on the day.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.contracts.providers import Provider
from app.core.logging import get_logger
from workers.inference.graph import Graph
from workers.inference.providers import REFERENCE, available, load
from workers.inference.runtime import Float32, Int64, Runtime, RuntimeRefused

SHAPES = ((1, 16), (8, 24), (32, 24))
"""Rows and tokens of the batches measured: a lone request, and what a queue of short texts is cut into."""
REPEATS = 5
TOLERANCE = 0.02
"""Largest difference of a probability from the reference's, or of a vector's cosine from 1: bf16 keeps 8 bits."""
AGREEMENT = 0.99
"""Share of rows whose best label must be the reference's, or as good there to within `TOLERANCE`: a head that cannot
decide between two labels says nothing about an engine."""

log = get_logger(__name__)


@dataclass(frozen=True)
class Measured:
    """What was found out about one provider."""

    seconds: float
    """For one batch of each shape."""
    difference: float
    agreement: float

    @property
    def alike(self) -> bool:
        return self.difference <= TOLERANCE and self.agreement >= AGREEMENT


def choose(graph: Graph, *, vocabulary: int, remembered: Path, vectors: bool = False) -> tuple[Provider, Runtime]:
    """The provider and its loaded runtime; falls back to the reference when nothing else is alike and faster.

    `vocabulary` bounds the token ids of the texts made up for the measurement; `remembered` is a JSON file; `vectors`
    says that the graph's output is compared by its direction, not as labels' logits.
    """
    candidates = available()
    key = _key(graph, candidates)
    known: dict[str, Any] = _read(remembered)
    if (name := known.get(key)) in candidates:
        try:
            return name, load(name, graph)
        except RuntimeRefused as exc:
            log.warning("provider_refused", provider=name, reason=str(exc))
    if candidates == [REFERENCE]:
        return REFERENCE, load(REFERENCE, graph)
    name, runtime = _measure_all(graph, candidates, vocabulary, vectors=vectors)
    _remember(remembered, key, name)
    return name, runtime


def _measure_all(
    graph: Graph, candidates: list[Provider], vocabulary: int, *, vectors: bool
) -> tuple[Provider, Runtime]:
    rng = np.random.default_rng(0)
    probes = [
        # The lower half: some tokenizers know ids that their model has no row for.
        (rng.integers(0, max(1, vocabulary // 2), shape, dtype=np.int64), np.ones(shape, dtype=np.int64))
        for shape in SHAPES
    ]
    best, runtime = REFERENCE, load(REFERENCE, graph)
    expected = [runtime.run(*probe) for probe in probes]
    fastest = _measure(runtime, probes, expected, vectors=vectors)
    log.info("provider_measured", provider=REFERENCE, milliseconds=round(fastest.seconds * 1000, 2))
    for name in candidates:
        if name == REFERENCE:
            continue
        try:
            other = load(name, graph)
            found = _measure(other, probes, expected, vectors=vectors)
        except Exception as exc:  # an engine may raise anything; it is then not chosen
            log.warning("provider_refused", provider=name, reason=str(exc))
            continue
        log.info(
            "provider_measured",
            provider=name,
            milliseconds=round(found.seconds * 1000, 2),
            difference=round(found.difference, 5),
            agreement=round(found.agreement, 4),
        )
        if found.alike and found.seconds < fastest.seconds:
            best, runtime, fastest = name, other, found
    return best, runtime


def _measure(
    runtime: Runtime, probes: list[tuple[Int64, Int64]], expected: list[Float32], *, vectors: bool
) -> Measured:
    """Medians of `REPEATS`, after one run that warms up."""
    seconds, differences, same = 0.0, [], []
    for probe, reference in zip(probes, expected, strict=True):
        alone = len(probe[0]) == 1
        found = runtime.run(*probe, alone=alone)
        if vectors:
            cosine = (found * reference).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(reference, axis=-1)
            differences.append(float(1 - cosine.min()))
        else:
            shares = _softmax(reference)
            differences.append(float(np.abs(_softmax(found) - shares).max()))
            chosen = np.take_along_axis(shares, found.argmax(-1)[..., None], -1)[..., 0]
            same.append((shares.max(-1) - chosen <= TOLERANCE).ravel())
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            runtime.run(*probe, alone=alone)
            times.append(time.perf_counter() - started)
        seconds += sorted(times)[REPEATS // 2]
    return Measured(seconds, max(differences), float(np.concatenate(same).mean()) if same else 1.0)


def _softmax(logits: Float32) -> Float32:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Float32 = exp / exp.sum(axis=-1, keepdims=True)
    return shares


def _key(graph: Graph, candidates: list[Provider]) -> str:
    """Processor, cores, engines and graph."""
    info = Path("/proc/cpuinfo")
    processor = [line for line in info.read_text().splitlines() if line.startswith(("model name", "flags"))][:2]
    parts = [*processor, str(len(os.sched_getaffinity(0))), *candidates]
    return hashlib.sha256("\n".join(parts).encode() + hashlib.sha256(graph.model).digest()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _remember(path: Path, key: str, name: Provider) -> None:
    """Written whole, so that two workers of a host never read half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{os.getpid()}")
    staged.write_text(json.dumps(_read(path) | {key: name}))
    staged.replace(path)
