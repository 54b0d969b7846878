"""Serving speed beside the bare runtime and other servers: the same graph and texts, interleaved, on the same cores as
the load.

Starts the whole service (its own PostgreSQL, Valkey, gateway, inference worker), publishes MiniLM under a random head
of 150 classes, and asks for real utterances of 5 to 25 words with 1, 64 and 256 connections; then the same graph in
int8, and with the provider that `auto` chooses on this machine.

    python -m benchmarks.serving                                  # float32, int8 and auto: 3 rounds, 4 minutes
    python -m benchmarks.peers install --into var/peers           # MLServer, BentoML, LitServe, Ray Serve
    python -m benchmarks.serving --peers var/peers --rounds 5 --data rows.jsonl --write docs/serving.md
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2

from app.core.embedded import EmbeddedPostgres, EmbeddedValkey
from app.core.process import free_port
from benchmarks.load import closed_loop, http_request
from benchmarks.peers import PEERS
from benchmarks.peers.processes import running
from benchmarks.serving_model import NAME, export, publish, quantize, utterances
from benchmarks.serving_report import Measured, plot, report

HOST = "127.0.0.1"
TEXTS = 2000
VARIANTS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "float32": ("artifact", "onnxruntime-cpu", (1, 64, 256)),
    "int8": ("int8", "onnxruntime-cpu", (64,)),
    "auto": ("artifact", "auto", (1, 64, 256)),
}
"""Variant -> the artifact's folder, MODELWRIGHT_PROVIDER, connections."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help='JSONL of {"text"} (default: the messages of the demo)')
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are shown")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments (benchmarks.peers install)")
    parser.add_argument("--write", type=Path, help="also write the report here, and its plot beside it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    image = options.write.with_suffix(".svg") if options.write else None
    arguments = " ".join(sys.argv[1:]).replace(str(options.peers), "var/peers")  # names no folder of this machine
    text = report(found, arguments, image.name if image else None)
    print(text)
    if image:
        options.write.write_text(text)
        plot(found, image)


def measure(folder: Path, options: argparse.Namespace) -> Measured:
    """All rounds."""
    texts = utterances(options.data)[:TEXTS]
    (folder / "texts.json").write_text(json.dumps(texts))
    export(folder / "artifact")
    quantize(folder / "artifact", folder / "int8")
    variants = {name: VARIANTS[name] for name in options.variants.split(",")}
    found = Measured(len(texts), options.rounds, options.seconds)
    with ExitStack() as stack:
        services = {}
        for name, (artifact, provider, _) in variants.items():
            (folder / name).mkdir(exist_ok=True)
            services[name] = stack.enter_context(service(folder / name, provider, folder / artifact))
        for turn in range(options.rounds):
            for name, (artifact, provider, connections) in variants.items():
                _say(f"round {turn + 1}/{options.rounds}: {name}, bare runtime")
                found.raw(name, bare_runtime(folder, folder / artifact, provider, options.seconds / 2))
                port, key = services[name]
                bodies = [json.dumps({"model": NAME, "inputs": text}).encode() for text in texts]
                requests = [http_request(HOST, port, "/predict", key, body) for body in bodies]
                for count in connections:
                    _say(f"round {turn + 1}/{options.rounds}: {name}, {count} connections")
                    found.served(name, count, load(port, requests, count, options.seconds))
            for name, peer in PEERS.items() if options.peers else ():
                _say(f"round {turn + 1}/{options.rounds}: {name}")
                with running(peer, options.peers / name, folder / "artifact") as port:
                    requests = [http_request(HOST, port, peer.path, "", peer.body(text)) for text in texts]
                    found.served(name, 64, load(port, requests, 64, options.seconds))
    return found


def load(port: int, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """One closed loop; every answer must be a 200."""
    result = asyncio.run(closed_loop(HOST, port, requests, connections=connections, seconds=seconds, warm_up=2.0))
    assert set(result.statuses) == {200}, result.statuses
    return {"rate": result.rate, "p50": result.quantile(0.5), "p99": result.quantile(0.99)}


def bare_runtime(folder: Path, artifact: Path, provider: str, seconds: float) -> dict[str, Any]:
    """One run of `serving_raw`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving_raw"]
    arguments = [artifact, provider, folder / "texts.json", seconds]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def service(folder: Path, provider: str, artifact: Path, **settings: str) -> Iterator[tuple[int, str]]:
    """(port, key) of a running gateway with one inference worker and `artifact` published as `NAME`."""
    from app.registry.migrate import upgrade

    postgres, valkey, port = EmbeddedPostgres.start(folder), EmbeddedValkey.start(folder), free_port()
    upgrade(postgres.url)
    publish(artifact, postgres.url, folder / "store")
    env = os.environ | {
        "MODELWRIGHT_HOME": str(folder),
        "MODELWRIGHT_DATABASE_URL": postgres.url,
        "MODELWRIGHT_REDIS_URL": valkey.url,
        "MODELWRIGHT_STORE_URL": str(folder / "store"),
        "MODELWRIGHT_PROVIDER": provider,
        **settings,
    }
    commands = [["worker", "inference"], ["gateway", "--port", str(port)]]
    processes = []
    with (folder / "log").open("wb") as log:
        for command in commands:
            processes.append(subprocess.Popen([sys.executable, "-m", "app", *command], env=env, stdout=log, stderr=log))
        try:
            _until_ready(port)
            yield port, (folder / "admin.key").read_text().strip()
        finally:
            for process in processes:
                process.terminate()
                process.wait(30)
            valkey.stop()
            postgres.stop()


def _until_ready(port: int) -> None:
    """The gateway answers and knows an inference worker; no trainer runs here, so it never is ready altogether."""
    for _ in range(600):
        try:
            if httpx2.get(f"http://{HOST}:{port}/health/ready", timeout=3).json()["checks"]["inference"]["ok"]:
                return
        except (httpx2.HTTPError, KeyError, ValueError):
            pass
        asyncio.run(asyncio.sleep(0.1))
    raise TimeoutError("the service did not become ready in 60 s")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
