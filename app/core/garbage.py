"""When Python looks for reference cycles: while few requests would wait for it.

Left alone it looks whenever so many objects were made, and goes through all that was made since: in a storm that is
every call that waits, 90 ms for two thousand of them. A plain call leaves no cycle, so that was for nothing; an
exception leaves some seventy objects. Knows no server.
"""

import gc

SOON, FEW = 20_000, 128
"""Objects more than at the last look, and requests waiting up to which that is enough to look again: 5 to 20 ms."""
LATE = 400_000
"""Objects with which nobody waits for a quiet moment: 60 MiB, three times what a full queue holds by default."""
FULL = 10
"""Every so many looks go through everything, not only through what came since the last one."""


class Garbage:
    """Of a process; automatic collections are off from now on, and what is loaded by now is never looked at again: a
    full collection takes 70 ms for it."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._looks = 0

    def look(self, waiting: int) -> bool:
        """Collect if it is time; `waiting` requests would be late. Cheap: ask some times a second."""
        made = gc.get_count()[0]
        if made < SOON or (waiting > FEW and made < LATE):
            return False
        self._looks += 1
        gc.collect(1 if self._looks % FULL else 2)
        return True
