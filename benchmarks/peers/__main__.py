"""Install the peers and try them.

python -m benchmarks.peers install --into var/peers       # one virtual environment each, 1.6 GB together
python -m benchmarks.peers check --into var/peers         # start each, compare a label with onnxruntime's, stop it
python -m benchmarks.peers check --into var/peers ray     # only some: names at the end
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import PEERS
from benchmarks.peers.graph import Classifier
from benchmarks.peers.processes import ask, install, running
from benchmarks.serving_model import export

TEXTS = ("has my parcel left yet?", "I want my money back", "which planet is closest to the sun?")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=["install", "check"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--into", type=Path, default=Path("var/peers"), help="folder of the environments")
    parser.add_argument("--artifact", type=Path, help="check: a version's folder (default: MiniLM under a random head)")
    options = parser.parse_intermixed_args()
    if unknown := set(options.names) - set(PEERS):
        parser.error(f"no peer is called {', '.join(sorted(unknown))}: {', '.join(PEERS)}")
    names = options.names or list(PEERS)
    if options.verb == "install":
        for name in names:
            print(f"{name}: {' '.join(PEERS[name].requirements)}", flush=True)
            install(PEERS[name], options.into / name)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if not options.artifact:
            export(Path(folder) / "artifact")
        artifact = options.artifact or Path(folder) / "artifact"
        return sum([not check(name, options.into / name, artifact) for name in names])


def check(name: str, venv: Path, artifact: Path) -> bool:
    """Whether the peer starts and answers as the graph does. Says so."""
    if not PEERS[name].installed(venv):
        print(f"{name}: not installed; `python -m benchmarks.peers install --into {venv.parent} {name}`")
        return False
    expected, started = Classifier(artifact)(TEXTS), time.monotonic()
    try:
        with running(PEERS[name], venv, artifact) as port:
            ready = time.monotonic() - started
            found = [ask(PEERS[name], port, text) for text in TEXTS]
    except TimeoutError as exc:
        print(f"{name}: {exc}")
        return False
    right = found == expected
    print(f"{name}: ready in {ready:.1f} s, {found} {'as' if right else f'but not {expected} as'} onnxruntime says")
    return right


if __name__ == "__main__":
    sys.exit(main())
