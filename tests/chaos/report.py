"""The result table: one row a promise, as `docs/reliability.md` shows it."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- result table: written by tests/chaos -->", "<!-- end of the result table -->"
MARKS = {"jobs": (BEGIN, END), "serving": (BEGIN.replace("result", "serving"), END.replace("result", "serving"))}


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


def write(path: Path, text: str, part: str = "jobs") -> None:
    """Put `text` between the two marks that the page has for this part."""
    begin, end = MARKS[part]
    before, rest = path.read_text().split(begin, 1)
    _, after = rest.split(end, 1)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
