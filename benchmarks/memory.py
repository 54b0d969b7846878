"""How much memory this process's children use while something happens. Linux: reads `/proc`."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20


def children(word: str, parent: int | None = None) -> list[int]:
    """Children of `parent` (this process) that have `word` in their command line, with all their descendants."""
    found = []
    for pid in _children(parent or os.getpid()):
        if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            found += _tree(pid)
    return found


@contextmanager
def watched(groups: dict[str, list[int]], seconds: float = 1.0) -> Iterator[dict[str, list[int]]]:
    """For each group of processes, the bytes that are resident now and then every so many seconds."""
    samples = {name: [resident(pids)] for name, pids in groups.items()}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(seconds):
            for name, pids in groups.items():
                samples[name].append(resident(pids))

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
        for name, pids in groups.items():
            samples[name].append(resident(pids))


def resident(pids: Sequence[int]) -> int:
    """Bytes; shared pages count for each process. Those that have ended count nothing."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _tree(pid: int) -> list[int]:
    return [pid, *(found for child in _children(pid) for found in _tree(child))]
