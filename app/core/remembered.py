"""What was looked up in the database, for a moment: calls that come by the thousand wait for no row.

An entry serves for `keep` seconds. The first use after `fresh` seconds also has it looked up once more, in a thread,
while this call and those after it go on with what is known. Knows nothing of what is looked up.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Generic, TypeVar

V = TypeVar("V")

SIZE = 4096
"""Entries; a flood of names empties the memory and costs look-ups, not memory without end."""


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    look_again: float
    until: float


class Remembered(Generic[V]):
    """Thread-safe but for `get`, which belongs to the event loop."""

    def __init__(self, again: Callable[[str, V], V], *, fresh: float, keep: float) -> None:
        """`again` looks a name up whose value was known. `fresh` and `keep` in seconds."""
        self._again, self._fresh, self._keep = again, fresh, keep
        self._entries: dict[str, _Entry[V]] = {}
        self._asked: dict[str, Future[V]] = {}
        """What is being looked up."""
        self._lock = Lock()

    def get(self, name: str) -> V | None:
        """What is known of `name`; never blocks."""
        entry, now = self._entries.get(name), monotonic()
        if entry is None or now >= entry.until:
            return None
        if now >= entry.look_again:
            entry.look_again = entry.until
            asyncio.get_running_loop().run_in_executor(None, self._refresh, name, entry.value)
        return entry.value

    def look(self, name: str, look_up: Callable[[], V]) -> V:
        """What another call has just found or is finding, else what `look_up` finds now; raises what it raises.

        A thousand calls that come at once for one name take one connection to the database, not all.
        """
        entries = self._entries  # `forget` puts another in its place: what is read before that is not kept
        found = entries.get(name)
        if found is not None and monotonic() < found.look_again < found.until:
            return found.value
        with self._lock:
            asked = self._asked
            first = name not in asked
            answer = asked.setdefault(name, Future())
        if not first:
            return answer.result()
        try:
            answer.set_result(self._keep_value(entries, name, look_up()))
        except BaseException as exc:
            answer.set_exception(exc)
        finally:
            del asked[name]
        return answer.result()

    def forget(self) -> None:
        """Everything, also what is being looked up now."""
        with self._lock:
            self._entries, self._asked = {}, {}

    def _refresh(self, name: str, value: V) -> None:
        entries = self._entries
        try:
            self._keep_value(entries, name, self._again(name, value))
        except Exception:  # whoever comes next asks, and hears why
            entries.pop(name, None)

    def _keep_value(self, entries: dict[str, _Entry[V]], name: str, value: V) -> V:
        now = monotonic()
        with self._lock:
            if len(entries) >= SIZE:
                entries.clear()
            entries[name] = _Entry(value, now + self._fresh, now + self._keep)
        return value
