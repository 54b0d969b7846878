"""Cycles are looked for while few requests would wait for it."""

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import uvicorn

from app.api.refusals import STATE
from app.cli.server import DrainingServer
from app.core.garbage import FEW, FULL, LATE, SOON, Garbage


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    yield Garbage()
    gc.unfreeze()
    gc.enable()


def make(count: int) -> list[Any]:
    """At least so many objects that the collector counts, none of them garbage: Python reuses a hundred uncounted."""
    return [[] for _ in range(count + 1000)]


def test_a_quiet_process_collects_soon(garbage: Garbage) -> None:
    gone = ref(Cycle())
    assert not garbage.look(waiting=0)
    assert gone() is not None  # nor does Python by itself
    kept = make(SOON)
    assert garbage.look(waiting=FEW)
    assert gone() is None
    assert not garbage.look(waiting=0), "once is enough"
    assert len(kept) > SOON


def test_a_storm_puts_it_off_but_not_for_ever(garbage: Garbage) -> None:
    gone = ref(Cycle())
    kept = make(SOON)
    assert not garbage.look(waiting=FEW + 1)
    assert gone() is not None
    kept += make(LATE)
    assert garbage.look(waiting=FEW + 1)
    assert gone() is None


def test_what_grew_old_before_it_became_garbage_goes_too(garbage: Garbage) -> None:
    old = Cycle()
    gone = ref(old)
    gc.collect(1)  # it is of the oldest generation now
    del old
    for _ in range(FULL):
        assert gone() is not None
        kept = make(SOON)
        assert garbage.look(waiting=0)
        del kept
    assert gone() is None


def test_refused_calls_would_have_waited_too() -> None:
    server: Any = DrainingServer(uvicorn.Config("none:app"), 1.0)
    server.lifespan = SimpleNamespace(state={})
    assert server._waiting() == 0
    refusals = server.lifespan.state[STATE] = SimpleNamespace(given=7)
    server.server_state.tasks.add("a call")
    assert server._waiting() == 8
    refusals.given = 9
    assert [server._waiting(), server._waiting()] == [3, 1]
