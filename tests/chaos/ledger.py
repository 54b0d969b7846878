"""The operation log: every request with its start, end and answer, and every fault, one JSON object a line."""

import json
import time
from pathlib import Path
from threading import Lock
from typing import Any


class Ledger:
    """Safe from any thread; kept in memory too, for the checks."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = Lock()
        self.entries: list[dict[str, Any]] = []

    def write(self, kind: str, **values: Any) -> None:
        entry = {"kind": kind, "at": round(time.monotonic(), 4), **values}
        with self._lock:
            self.entries.append(entry)
            self._file.write(json.dumps(entry) + "\n")

    def requests(self, *, since: float = 0.0) -> list[dict[str, Any]]:
        """Requests that began after `since` (monotonic)."""
        with self._lock:
            return [e for e in self.entries if e["kind"] == "request" and e["start"] >= since]

    def close(self) -> None:
        self._file.close()
