"""The limit: the bare runtime in one process, no HTTP, no queue, no tokenizing. Prints rows a second as JSON.

Twice: ONNX Runtime as it comes (its own settings but for the threads, the standard graph), which is what anybody gets
who writes ten lines; and the engine as the service sets it up. As many batches run side by side as the service runs
(its lanes), and one text alone gets all cores, as there.
"""

import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from app.contracts.manifest import FUSED_NAME, MANIFEST_NAME, MODEL_NAME, Manifest
from workers.codecs.text import TextCodec, pad
from workers.inference import providers
from workers.inference.batcher import Batching, partition
from workers.inference.graph import Graph
from workers.inference.providers import choice
from workers.inference.runtime import LANES, ON_CPU, Float32, Int64, Runtime

BATCH = 32
WINDOW = 256
"""Texts sorted by length together: as many as the busiest load has in flight."""

Batch = tuple[Any, Any]


class Stock:
    """ONNX Runtime as it comes."""

    batching = ON_CPU

    def __init__(self, path: Path, output: str) -> None:
        cores = len(os.sched_getaffinity(0))
        self._narrow, self._wide = self._session(path, max(1, cores // LANES)), self._session(path, cores)
        self._output = output

    @staticmethod
    def _session(path: Path, threads: int) -> "onnxruntime.InferenceSession":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, ids: Int64, mask: Int64, *, alone: bool = False) -> Float32:
        """See `Runtime.run`."""
        session = self._wide if alone else self._narrow
        logits: Float32 = session.run([self._output], {"input_ids": ids, "attention_mask": mask})[0]
        return logits


def main(folder: Path, provider: Any, texts_file: Path, seconds: float) -> dict[str, Any]:
    """`random`: batches of 32 as they come; `sorted`: cut by length as the service cuts; `single`: one by one; `own`:
    the same `sorted` by the service's engine, which is `provider`."""
    serving = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes()).serving
    fused = (folder / FUSED_NAME).read_bytes() if (folder / FUSED_NAME).is_file() else None
    graph = Graph((folder / MODEL_NAME).read_bytes(), serving.inputs, serving.outputs[0], fused)
    codec = TextCodec(folder / "tokenizer.json", max_length=serving.max_length, pad_token_id=serving.pad_token_id)
    ids = [row.ids for row in codec.encode(json.loads(texts_file.read_text()))]
    if provider == "auto":
        provider, own = choice.choose(graph, vocabulary=codec.vocabulary, remembered=folder / "providers.json")
    else:
        own = providers.load(provider, graph)
    stock = Stock(folder / MODEL_NAME, serving.outputs[0])
    in_order = [pad(ids[i : i + BATCH], serving.pad_token_id) for i in range(0, len(ids), BATCH)]

    def by_length(suits: Batching) -> list[Batch]:
        return [
            pad([window[i] for i in batch], serving.pad_token_id)
            for window in (ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW))
            for batch in partition([len(row) for row in window], suits.tokens, suits)
        ]

    times = _times(stock, [pad([row], serving.pad_token_id) for row in ids], seconds)
    return {
        "provider": provider,
        "random": _rate(stock, in_order, seconds),
        "sorted": _rate(stock, by_length(stock.batching), seconds),
        "own": _rate(own, by_length(own.batching), seconds),
        "single_p50": statistics.median(times),
        "single_p99": float(np.quantile(times, 0.99)),
    }


def _rate(runtime: Runtime, batches: list[Batch], seconds: float) -> float:
    lanes = runtime.batching.lanes
    rows = [0] * lanes
    for batch in batches[:3]:
        runtime.run(*batch)
    started = time.perf_counter()

    def lane(number: int) -> None:
        turn = number
        while time.perf_counter() - started < seconds:
            ids, mask = batches[turn % len(batches)]
            runtime.run(ids, mask)
            rows[number] += len(ids)
            turn += lanes

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rows) / (time.perf_counter() - started)


def _times(runtime: Runtime, rows: list[Batch], seconds: float) -> list[float]:
    until = time.perf_counter() + seconds
    times: list[float] = []
    while time.perf_counter() < until:
        ids, mask = rows[len(times) % len(rows)]
        started = time.perf_counter()
        runtime.run(ids, mask, alone=True)
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]))))
