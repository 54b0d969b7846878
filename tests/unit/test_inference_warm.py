"""What is wanted is loaded before it is asked for, as far as it fits."""

from pathlib import Path

from app.contracts.placement import Desired
from tests.unit.test_inference_sessions import sessions
from workers.inference.warm import Warm


def wanted(*pinned: str, unloaded: tuple[str, ...] = ()) -> Desired:
    return Desired(frozenset(pinned), frozenset(unloaded))


def test_pinned_versions_are_loaded_and_unwanted_ones_leave(tmp_path: Path) -> None:
    cache, asked = sessions(tmp_path, room_for=3)
    now = wanted("v0", "v1")
    warm = Warm(cache, lambda: now)
    warm.once()
    warm.once()
    assert asked == ["v0", "v1"]
    now = wanted("v1", unloaded=("v0",))
    warm.once()
    assert cache.loaded("v0") is None and cache.loaded("v1") is not None


def test_how_large_batches_may_be_is_passed_on(tmp_path: Path) -> None:
    cache, _ = sessions(tmp_path)
    Warm(cache, lambda: Desired(frozenset({"v0"}), frozenset(), {"v0": 2})).once()
    assert cache.max_batch_size == {"v0": 2}


def test_pins_beyond_the_budget_do_not_push_one_another_out(tmp_path: Path) -> None:
    cache, asked = sessions(tmp_path, room_for=2)
    warm = Warm(cache, lambda: wanted("v0", "v1", "v2", "v3"))
    for _ in range(3):
        warm.once()
    assert asked == ["v0", "v1"]


def test_one_that_cannot_be_loaded_keeps_no_other_from_it(tmp_path: Path) -> None:
    cache, asked = sessions(tmp_path)
    Warm(cache, lambda: wanted("bad", "v0")).once()
    assert asked == ["bad", "v0"] and cache.loaded("v0") is not None
