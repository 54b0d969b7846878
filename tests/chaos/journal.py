"""The steps that training children really took, as `toy.py` wrote them down: what a kill cost, and when."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass
class Run:
    """What one attempt did."""

    fence: int
    first: int
    last: int
    last_at: float
    """Monotonic."""


class Journal:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def runs(self, job_id: str) -> list[Run]:
        """Attempts that took a step, by fence."""
        found: dict[int, Run] = {}
        path = self.folder / job_id
        for line in path.read_text().splitlines() if path.exists() else ():
            fence, step, at = line.split()
            run = found.setdefault(int(fence), Run(int(fence), int(step), int(step), float(at)))
            run.last, run.last_at = int(step), float(at)
        return [found[fence] for fence in sorted(found)]

    def step(self, job_id: str) -> int:
        """The last step of the newest attempt; 0 before the first."""
        runs = self.runs(job_id)
        return runs[-1].last if runs else 0

    def lost(self, job_id: str) -> list[int]:
        """For each attempt but the first: how many steps it had to take again. Negative: steps were left out."""
        runs = self.runs(job_id)
        return [before.last - after.first + 1 for before, after in pairwise(runs)]
