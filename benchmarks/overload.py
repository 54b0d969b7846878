"""Overload: what the service still does while it is asked for many times what it can.

Starts the whole service (its own PostgreSQL, Valkey, gateway, inference worker) with MiniLM under a random head of 150
classes, measures its peak in a closed loop and one caller alone, then sends 10 times that peak in texts of 128 tokens,
and 2 times the peak of utterances of 5 to 25 words, open loop, all with one key. After each storm comes one ordinary
request every 0.1 s. The load runs on the same cores.

    python -m benchmarks.overload --write docs/overload.md         # 6 minutes
    python -m benchmarks.overload --seconds 8 --measure 3          # a look: 1 minute, no figures to rely on
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.contracts.manifest import MANIFEST_NAME, Manifest
from app.core.predict_queue import estimate
from app.core.settings import Settings
from benchmarks.load import closed_loop, http_request
from benchmarks.memory import children, watched
from benchmarks.overload_report import Measured, plot, report
from benchmarks.serving import HOST, service
from benchmarks.serving_model import NAME, export, utterances
from benchmarks.storm import poisson, storm
from workers.codecs.text import TextCodec

CONNECTIONS = (64, 256)
"""Of callers; the better of the two is the peak. A storm stands beside the mean of the peaks before and after it: a
host's speed drifts by a tenth within a minute."""
AFTER, EVERY = 15.0, 0.1
"""Seconds of ordinary requests after a storm, and between two of them."""


@dataclass(frozen=True)
class Scenario:
    """`kept`: the share of the peak that is promised."""

    name: str
    times: float
    kept: float
    texts: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help='JSONL of {"text"} (default: the messages of the demo)')
    parser.add_argument("--provider", default="onnxruntime-cpu", help="as MODELWRIGHT_PROVIDER")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each storm")
    parser.add_argument("--measure", type=float, default=8.0, help="seconds of each measurement beside it")
    parser.add_argument("--write", type=Path, help="also write the report here, and its plot beside it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _say("exporting the model and starting the service")
        export(folder / "artifact")
        words = utterances(options.data)[:2000]
        scenarios = [
            Scenario("texts of 128 tokens", 10, 0.90, long_texts(words, folder / "artifact")),
            Scenario("utterances of 5 to 25 words", 2, 0.85, words),
        ]
        with service(folder, options.provider, folder / "artifact") as (port, key):
            found = [measure(scenario, port, key, options) for scenario in scenarios]
    image = options.write.with_suffix(".svg") if options.write else None
    command = f"python -m benchmarks.overload --provider {options.provider} --seconds {options.seconds:g}"
    text = report(found, command, image.name if image else None)
    print(text)
    if image:
        options.write.write_text(text)
        plot(found, image)


def measure(scenario: Scenario, port: int, key: str, options: argparse.Namespace) -> Measured:
    """One scenario against a running service."""
    bodies = [json.dumps({"model": NAME, "inputs": text}).encode() for text in scenario.texts]
    requests = [http_request(HOST, port, "/predict", key, body) for body in bodies]
    asyncio.run(closed_loop(HOST, port, requests, connections=8, seconds=2))  # loads the version
    _say(f"{scenario.name}: one caller alone, then the peak")
    alone = asyncio.run(closed_loop(HOST, port, requests, connections=1, seconds=options.measure))
    before = _peak(port, requests, options.measure)
    rate = scenario.times * before
    _say(f"  peak {before:.0f}/s, alone p99 {alone.quantile(0.99) * 1000:.1f} ms")
    _say(f"  {rate:.0f}/s for {options.seconds:g} s")
    moments = poisson(rate, options.seconds)
    moments += [options.seconds + turn * EVERY for turn in range(int(AFTER / EVERY))]
    groups = {role: children(role) for role in ("gateway", "worker")}
    with watched(groups) as memory:
        weather = storm(HOST, port, requests, moments)
    _say("  the peak again")
    peak = (before + _peak(port, requests, options.measure)) / 2
    tokens = estimate(scenario.texts) / len(scenario.texts)
    return Measured(
        name=scenario.name,
        times=scenario.times,
        promised=scenario.kept,
        seconds=options.seconds,
        rate=rate,
        peak=peak,
        alone=alone,
        storm=weather,
        memory=memory,
        budget=Settings().queue_tokens / (tokens * peak),
    )


def _peak(port: int, requests: list[bytes], seconds: float) -> float:
    runs = [closed_loop(HOST, port, requests, connections=n, seconds=seconds, warm_up=2.0) for n in CONNECTIONS]
    return max(asyncio.run(run).rate for run in runs)


def long_texts(texts: list[str], artifact: Path, count: int = 200) -> list[str]:
    """Utterances joined until the model's longest input is full."""
    serving = Manifest.model_validate_json((artifact / MANIFEST_NAME).read_bytes()).serving
    codec = TextCodec(artifact / "tokenizer.json", max_length=serving.max_length, pad_token_id=serving.pad_token_id)
    draw = random.Random(0)
    joined = [" ".join(draw.choices(texts, k=serving.max_length // 4)) for _ in range(count)]
    return [text[: max(end for _, end in row.offsets)] for text, row in zip(joined, codec.encode(joined), strict=True)]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
