"""Connections that stop waiting: each transaction has a deadline. Knows psycopg; no pool, no table.

A frozen server keeps its connections open and acknowledges every packet, so no socket option, `connect_timeout` (2 s
at least) or `statement_timeout` (the server's own) ends a wait for it, and a thread cannot be cancelled. So the wait
itself has the bound. Only resolving the server's name lies outside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from time import monotonic
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen, PQGenConn
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

_TICK = 0.1  # psycopg's own: how often a wait looks up
_LEAST = 0.2
"""Seconds for an answer even past the deadline: not the server was slow then, but the block or this machine."""


class NoAnswer(psycopg.OperationalError):
    """The deadline passed while the server said nothing."""


class _Deadline(local):
    at: float | None = None


_deadline = _Deadline()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Everything this thread asks of any server in the block must be answered within `seconds`."""
    outer, _deadline.at = _deadline.at, monotonic() + seconds
    try:
        yield
    finally:
        _deadline.at = outer


class BoundedConnection(psycopg.Connection[TupleRow]):
    """Raises `NoAnswer` past the deadline and closes itself: what was asked may still be answered."""

    def wait(self, gen: PQGen[RV], interval: float = _TICK, timeout: float | None = None) -> RV:
        if _deadline.at is None or timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, max(_LEAST, _deadline.at - monotonic()))
        except psycopg.OperationalError as exc:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:  # an answer: a refusal, or the server's end
                raise
            self.close()
            raise NoAnswer("the server did not answer in time") from exc

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Any]:
        """psycopg's, looking at the clock at each tick; private, so a test connects to a frozen server."""
        gen = super()._connect_gen(conninfo)
        try:
            state = next(gen)
            while _deadline.at is None or monotonic() < _deadline.at:
                state = gen.send((yield state))
        except StopIteration as done:
            return done.value
        raise NoAnswer("the server did not accept a connection in time")
