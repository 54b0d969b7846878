"""Whether a gateway lets one more prediction in: what it has accepted and not answered is bounded, and shared fairly.

Asked before a call's body is read: to refuse costs a fiftieth of what it costs to answer. The queue in Valkey has a
bound of its own over all gateways (`predict_queue.py`); whoever it refused is refused here for a moment. Pure but for
the clock; knows neither Valkey nor HTTP.
"""

import time
from collections.abc import Callable

from app.core.errors import Overloaded

REFUSE_AGAIN = 0.01
"""Seconds for which a refusal stands as it was worded, and for which a caller that the queue refused need not ask."""


class Admission:
    """For one event loop."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit` in tokens, estimated. The last third of it is kept for callers that have less than their share: a
        flood of one key leaves room for the next, and nobody waits longer than a full queue takes."""
        self._limit, self._open, self._clock = limit, limit - limit // 3, clock
        self._held: dict[str, int] = {}
        """Caller -> tokens accepted and not answered."""
        self.total = 0
        """Of all callers."""
        self._refused: dict[str, tuple[float, Overloaded]] = {}
        """Caller -> until when it need not ask the queue again, and what it hears."""
        self._last = (0.0, self._full(0))
        self._until = 0.0
        """When the last of `_refused` is over."""

    @property
    def crowded(self) -> bool:
        """Whether there may be anybody to refuse: what is cheap to know."""
        return self.total >= self._open or self._clock() < self._until

    def refusal(self, caller: str) -> Overloaded | None:
        """Why this caller may not send more now; for a moment the same object, so that it need be worded only once."""
        if self.total >= self._open and self._held.get(caller, 0) * max(2, len(self._held)) >= self._limit:
            now = self._clock()
            if now >= self._last[0]:
                self._last = (now + REFUSE_AGAIN, self._full(self.total))
            return self._last[1]
        if refused := self._refused.get(caller):
            until, problem = refused
            return problem if self._clock() < until else None
        return None

    def enter(self, caller: str, tokens: int) -> None:
        """A call of so many tokens was accepted."""
        self.total += tokens
        self._held[caller] = self._held.get(caller, 0) + tokens

    def leave(self, caller: str, tokens: int) -> None:
        """It has its answer, or nobody waits for it any more."""
        self.total -= tokens
        self._held[caller] -= tokens
        if self._held[caller] <= 0:
            del self._held[caller]

    def refused(self, caller: str, waiting: int) -> Overloaded:
        """The queue, in which so many tokens wait, has refused this caller."""
        if len(self._refused) > 1000:
            self._refused.clear()
        problem = self._full(waiting)
        self._until = self._clock() + REFUSE_AGAIN
        self._refused[caller] = (self._until, problem)
        return problem

    def _full(self, waiting: int) -> Overloaded:
        return Overloaded(
            f"about {waiting:,} tokens wait; the limit is {self._limit:,}: try again in {Overloaded.retry_after} s, "
            "send less at once, start more inference workers or raise MODELWRIGHT_QUEUE_TOKENS"
        )
