"""The result table: one row a promise, as `docs/reliability.md` shows it."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- result table: written by tests/chaos -->", "<!-- end of the result table -->"


@dataclass(frozen=True)
class Row:
    line: int
    what: str
    count: str
    promised: str
    measured: str
    ok: bool


def table(rows: Sequence[Row], seed: int, minutes: float, scale: float, cores: int) -> str:
    """Markdown."""
    made = f"Seed {seed}, scale {scale:g}, {minutes:.0f} minutes on {cores} cores ({platform.machine()}), Python "
    made += f"{platform.python_version()}. {sum(r.ok for r in rows)} of {len(rows)} promises kept."
    lines = ["| line | what was done | times | promised | measured | kept |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {r.line} | {r.what} | {r.count} | {r.promised} | {r.measured} | {'yes' if r.ok else '**NO**'} |"
        for r in sorted(rows, key=lambda r: r.line)
    ]
    return "\n".join([made, "", *lines])


def write(path: Path, text: str) -> None:
    """Put `text` between the two marks of the page."""
    page = path.read_text()
    before, rest = page.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
