"""Other processes, as /proc shows them: descendants, their state, signals to all of them. Linux only."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def _parents() -> dict[int, int]:
    """pid -> parent's pid, of everything that runs."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, oldest generation first."""
    parents, found = _parents(), [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def signal_tree(pid: int, sig: signal.Signals) -> None:
    """The process first: while it is stopped or dead it starts no more."""
    for one in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(one, sig)


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
