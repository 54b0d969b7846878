"""The limit: the bare runtime in one process, no HTTP, no queue, no tokenizing. Prints rows a second as JSON.

As many batches run side by side as the service runs (its lanes), and one text alone gets all cores, as there.
"""

import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from app.contracts.manifest import MANIFEST_NAME, Manifest
from workers.codecs.text import TextCodec, pad
from workers.inference import providers
from workers.inference.batcher import partition
from workers.inference.providers import choice
from workers.inference.runtime import Graph, Runtime

BATCH = 32
WINDOW = 256
"""Texts sorted by length together: as many as the busiest load has in flight."""

Batch = tuple[Any, Any]


def main(folder: Path, provider: Any, texts_file: Path, seconds: float) -> dict[str, Any]:
    """`random`: batches of 32 as they come; `sorted`: cut by length as the service cuts; `single`: one by one."""
    serving = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes()).serving
    graph = Graph((folder / "model.onnx").read_bytes(), serving.inputs, serving.outputs[0])
    codec = TextCodec(folder / "tokenizer.json", max_length=serving.max_length, pad_token_id=serving.pad_token_id)
    ids = [row.ids for row in codec.encode(json.loads(texts_file.read_text()))]
    if provider == "auto":
        provider, runtime = choice.choose(graph, vocabulary=codec.vocabulary, remembered=folder / "providers.json")
    else:
        runtime = providers.load(provider, graph)
    in_order = [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)]
    by_length = [
        [window[i] for i in batch]
        for window in (ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW))
        for batch in partition([len(row) for row in window], runtime.batching.tokens, runtime.batching)
    ]
    found: dict[str, Any] = {"provider": provider}
    for name, batches in (("random", in_order), ("sorted", by_length)):
        found[name] = _rate(runtime, [pad(batch, serving.pad_token_id) for batch in batches], seconds)
    times = _times(runtime, [pad([row], serving.pad_token_id) for row in ids], seconds)
    return found | {"single_p50": statistics.median(times), "single_p99": float(np.quantile(times, 0.99))}


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
