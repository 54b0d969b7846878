"""Which waiting rows run together: a pure decision over lengths, deadlines and a given clock.

Knows nothing of models, tensors, threads or Valkey. A row is one sequence of tokens; a request has one row or
many, and its rows may run in several batches.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LEAST_TOKENS = 128
"""Rows are not spread over lanes below this: 8 short texts cost as much each as 16 do, 4 cost a sixth more."""

V = TypeVar("V")
R = TypeVar("R")


@dataclass(frozen=True)
class Batching:
    """What batches suit an engine."""

    tokens: int
    """Padded tokens in a batch beyond which a larger one gains nothing."""
    padding: float
    """Most padding in a batch, as a share of its tokens."""
    start: int
    """What a batch takes beside its tokens, in tokens: so much padding is cheaper than another batch."""
    lanes: int
    """Batches that run side by side."""
    rows: int | None = None
    """Most rows in a batch, where somebody said so for a version."""


@dataclass(eq=False, slots=True)
class Waiting(Generic[V, R]):
    """One request; `lengths[i]` is row i's tokens. A batch never mixes versions (compared by identity)."""

    version: V
    lengths: Sequence[int]
    deadline: float
    request: R
    dropped: bool = False
    """Set when its answer is of no more use: the rows that still wait are never run."""


Row = tuple[Waiting[V, R], int]
"""A request and the index of one of its rows."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[V, R]):
    """Rows of one version, shortest last."""

    version: V
    rows: list[Row[V, R]]


def partition(lengths: Sequence[int], budget: int, suits: Batching) -> list[list[int]]:
    """Cut rows into batches; returns indices into `lengths` (tokens, each > 0), longest rows first.

    In each batch rows x longest <= `budget` tokens, unless a single row exceeds it, there are `suits.rows` at most,
    and padding is at most `suits.padding` of the batch's tokens. Rows of one length join the longer ones before them
    where the padding that this takes costs less than to start one more batch.
    """
    if len(lengths) == 1:  # what a lone caller waits for
        return [[0]]
    batches: list[list[int]] = []
    longest = shortest = real = 0
    rows = Counter(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        padded = (len(batches[-1]) + 1) * longest if batches else 0
        full = batches and len(batches[-1]) == suits.rows
        fits = not full and padded <= budget and padded - real - length <= suits.padding * padded
        joins = length == shortest or rows[length] * (longest - length) <= suits.start
        if batches and fits and joins:
            batches[-1].append(i)
        else:
            batches.append([i])
            longest, real = length, 0
        shortest, real = length, real + length
    return batches


@dataclass(eq=False)
class Batcher(Generic[V, R]):
    """The rows that wait in this process. Not thread-safe: its owner holds a lock."""

    batching: Callable[[V], Batching]
    clock: Callable[[], float]
    """Seconds, on the same scale as the deadlines."""
    expired: int = 0
    """Requests dropped because their deadline passed while they waited here."""
    tokens: int = 0
    """Tokens of all waiting rows."""
    _rows: dict[int, list[Row[V, R]]] = field(default_factory=dict)
    """id(version) -> its rows, oldest first. Versions stand in the order of their turns."""

    def add(self, waiting: Waiting[V, R]) -> None:
        """Let all rows of a request wait."""
        rows = self._rows.setdefault(id(waiting.version), [])
        rows.extend((waiting, i) for i in range(len(waiting.lengths)))
        self.tokens += sum(waiting.lengths)

    def next(self) -> Batch[V, R] | None:
        """The batch that holds the oldest row of the version whose turn it is, or None when nothing waits.

        What waits is cut into a batch for each lane, so that none idles while another runs it all.
        Taking the oldest row's batch each time bounds every row's wait; versions take turns, so one busy
        version cannot starve the others.
        """
        now = self.clock()
        while self._rows:
            key = next(iter(self._rows))
            rows = self._live(self._rows.pop(key), now)
            if not rows:
                continue
            version = rows[0][0].version
            suits = self.batching(version)
            lengths = [waiting.lengths[i] for waiting, i in rows]
            budget = min(suits.tokens, max(LEAST_TOKENS, -(-sum(lengths) // suits.lanes)))
            chosen = next(b for b in partition(lengths, budget, suits) if 0 in b)
            picked = set(chosen)
            if len(rows) > len(chosen):
                self._rows[key] = [row for i, row in enumerate(rows) if i not in picked]
            self.tokens -= sum(lengths[i] for i in chosen)
            return Batch(version, [rows[i] for i in chosen])
        return None

    def _live(self, rows: list[Row[V, R]], now: float) -> list[Row[V, R]]:
        live = []
        for waiting, i in rows:
            if not waiting.dropped and waiting.deadline <= now:
                waiting.dropped = True
                self.expired += 1
            if waiting.dropped:
                self.tokens -= waiting.lengths[i]
            else:
                live.append((waiting, i))
        return live
