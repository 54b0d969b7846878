"""The long run: `python -m tests.chaos [--part serving] [--seed N] [--only 3,5] [--scale 0.1] [--write <page>]`.

Prints the result table and exits 1 when a promise is broken. Logs, ledgers and databases are kept then.
"""

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos.harness import Harness, Scenario
from tests.chaos.report import Row, table, write
from tests.chaos.scenarios.corruption import corruption
from tests.chaos.scenarios.outages import broker_away
from tests.chaos.scenarios.restarts import restarts
from tests.chaos.scenarios.resume import kills, terminations
from tests.chaos.scenarios.stalls import stalls
from tests.chaos.scenarios.volume import volume
from tests.chaos.serving.lines import SERVING

JOBS: dict[int, Scenario] = {
    1: volume,
    2: broker_away,
    3: kills,
    4: stalls,
    5: restarts,
    6: corruption,
    7: terminations,
}
PARTS = {"jobs": JOBS, "serving": SERVING}
SCENARIOS = JOBS | SERVING


def run(lines: list[int], seed: int, scale: float, folder: Path, progress: Progress) -> list[Row]:
    """Rows of every line; one that breaks down is a broken promise, and the others still run."""
    rows: list[Row] = []
    for line in lines:
        task = progress.add_task(f"line {line}", total=1.0)

        def tell(what: str, share: float, task: object = task, line: int = line) -> None:
            progress.update(task, description=f"line {line}: {what}", completed=share)  # type: ignore[arg-type]

        place = folder / str(line)
        place.mkdir(parents=True)
        try:
            rows += SCENARIOS[line](Harness(place, seed, scale, tell))
        except Exception as exc:
            traceback.print_exc()
            rows.append(Row(line, "the whole line", "1", "runs to its end", f"{type(exc).__name__}: {exc}", ok=False))
        tell("done", 1.0)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Break things; check the promises.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of every random choice")
    parser.add_argument("--part", choices=PARTS, default="jobs", help="which lines, and which table of the page")
    parser.add_argument("--only", help="of those the lines to run, as 3,5")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--write", type=Path, help="page whose result table is replaced")
    options = parser.parse_args()
    known = PARTS[options.part]
    lines = [int(line) for line in options.only.split(",")] if options.only else list(known)
    if unknown := set(lines) - set(known):
        parser.error(f"--only {min(unknown)}: {options.part} has the lines {', '.join(map(str, known))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything that was started is stopped
    folder, began = Path(tempfile.mkdtemp(prefix="modelwright-chaos-")), time.monotonic()
    console = Console()
    console.print(f"seed {options.seed}; logs in {folder}", soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        rows = run(lines, options.seed, options.scale, folder, progress)
    text = table(rows, options.seed, (time.monotonic() - began) / 60, options.scale, os.cpu_count() or 1)
    console.print(text, soft_wrap=True, markup=False, highlight=False)
    if options.write:
        write(options.write, text, options.part)
    broken = [row for row in rows if not row.ok]
    if not broken:
        shutil.rmtree(folder)
        return 0
    console.print(f"{len(broken)} promises broken; logs, ledgers and databases are kept in {folder}", soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
