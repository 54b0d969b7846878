"""Properties of batching: nothing lost, nothing doubled, budget and padding kept, versions never mixed."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workers.inference.batcher import LEAST_TOKENS, Batcher, Batching, Waiting, partition
from workers.inference.runtime import ON_CPU

lengths = st.lists(st.integers(1, 512), max_size=200)
budgets = st.integers(16, 4096)
limits = st.sampled_from([0.0, 0.1, 0.5, 1.0])


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(budget: int = 4096, padding_limit: float = 0.1, lanes: int = 1) -> tuple[Batcher[str, str], Clock]:
    clock = Clock()
    return Batcher(lambda _version: Batching(budget, padding_limit, 1000, lanes), clock), clock


@given(lengths, budgets, limits, st.sampled_from([0, 5, 1000]))
def test_partition_keeps_every_row_once_within_budget_and_padding(
    lengths: list[int], budget: int, limit: float, start: int
) -> None:
    batches = partition(lengths, budget, Batching(budget, limit, start, 1))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1
        assert padded - sum(lengths[i] for i in batch) <= limit * padded


@given(lengths, st.integers(1, 5))
def test_no_batch_has_more_rows_than_somebody_said(lengths: list[int], rows: int) -> None:
    batches = partition(lengths, 4096, Batching(4096, 1.0, 1000, 1, rows))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert max(map(len, batches), default=0) <= rows


def test_a_batch_is_started_only_where_that_costs_less_than_the_padding_it_saves() -> None:
    suits = Batching(512, 1.0, 5, 1)
    assert partition([10, 9, 9, 9, 9, 9], 512, suits) == [[0, 1, 2, 3, 4, 5]]
    assert partition([10, 9, 9, 9, 9, 9, 9], 512, suits) == [[0], [1, 2, 3, 4, 5, 6]]
    assert partition([20, 15], 512, suits) == [[0, 1]]
    assert partition([20, 14], 512, suits) == [[0], [1]]


def test_real_length_mixes_give_large_batches_with_little_padding() -> None:
    draw = random.Random(7)
    lengths = [min(128, max(3, round(draw.lognormvariate(2.5, 0.5)))) for _ in range(256)]
    batches = partition(lengths, 512, ON_CPU)
    padded = sum(len(batch) * lengths[batch[0]] for batch in batches)
    assert 1 - sum(lengths) / padded < 0.1
    assert len(lengths) / len(batches) > 8


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 300), min_size=1, max_size=20))),
    budgets,
    limits,
    st.integers(1, 5),
)
def test_every_row_leaves_once_in_a_batch_of_its_own_version(
    requests: list[tuple[str, list[int]]], budget: int, limit: float, pace: int
) -> None:
    batcher, _ = make(budget, limit)
    seen: Counter[tuple[int, int]] = Counter()
    queue = [Waiting(version, lengths, 1.0, "") for version, lengths in requests]
    coming = list(queue)
    while coming or batcher.tokens:
        for _ in range(min(pace, len(coming))):
            batcher.add(coming.pop(0))
        batch = batcher.next()
        assert batch is not None
        assert {waiting.version for waiting, _ in batch.rows} == {batch.version}
        seen.update((id(waiting), i) for waiting, i in batch.rows)
    assert seen == Counter((id(w), i) for w in queue for i in range(len(w.lengths)))
    assert batcher.next() is None


def test_the_oldest_row_leaves_first_and_versions_take_turns() -> None:
    batcher, _ = make()
    for k in range(40):
        batcher.add(Waiting("busy", [10 + k * 7 % 90], 1.0, f"busy{k}"))
    batcher.add(Waiting("quiet", [10], 1.0, "quiet"))
    first, second = batcher.next(), batcher.next()
    assert first and any(waiting.request == "busy0" for waiting, _ in first.rows)
    assert second and second.version == "quiet"


def test_expired_and_dropped_requests_never_leave() -> None:
    batcher, clock = make()
    late, dropped, fine = (Waiting("v", [5, 200], deadline, "") for deadline in (1.0, 9.0, 9.0))
    for waiting in (late, dropped, fine):
        batcher.add(waiting)
    dropped.dropped = True
    clock.now = 1.0
    rows = [row for _ in range(2) if (batch := batcher.next()) for row in batch.rows]
    assert {id(waiting) for waiting, _ in rows} == {id(fine)}
    assert len(rows) == 2
    assert (batcher.next(), batcher.tokens, batcher.expired) == (None, 0, 1)


def test_what_waits_is_spread_over_the_lanes_unless_it_is_little() -> None:
    batcher, _ = make(lanes=2)
    for k in range(40):
        batcher.add(Waiting("v", [10], 1.0, f"{k}"))
    batch = batcher.next()
    assert batch is not None
    assert len(batch.rows) == 20
    few, _ = make(lanes=2)
    for k in range(LEAST_TOKENS // 10):
        few.add(Waiting("v", [10], 1.0, f"{k}"))
    batch = few.next()
    assert batch is not None
    assert len(batch.rows) == LEAST_TOKENS // 10
    assert few.tokens == 0
