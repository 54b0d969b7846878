"""Admission: bounded by what is unanswered, a share kept for those who have less, room found again."""

from hypothesis import given
from hypothesis import strategies as st

from app.core.admission import REFUSE_AGAIN, Admission

LIMIT = 80


def test_what_is_unanswered_counts_until_it_is_answered() -> None:
    admission = Admission(LIMIT)
    for _ in range(6):
        assert admission.refusal("a") is None
        admission.enter("a", 10)
    refusal = admission.refusal("a")  # two thirds are full, the rest is for others
    assert refusal is not None and "about 60 tokens wait; the limit is 80" in refusal.message
    assert admission.refusal("b") is None
    admission.leave("a", 10)
    assert admission.refusal("a") is None


def test_whoever_has_less_than_its_share_still_gets_in() -> None:
    admission = Admission(LIMIT)
    admission.enter("flood", 200)
    assert admission.refusal("flood")
    assert admission.refusal("quiet") is None
    admission.enter("quiet", 39)
    assert admission.refusal("quiet") is None
    admission.enter("quiet", 1)
    assert admission.refusal("quiet")
    assert admission.refusal("third") is None


def test_whom_the_queue_refused_is_refused_for_a_moment() -> None:
    now = [5.0]
    admission = Admission(LIMIT, lambda: now[0])
    assert "about 99 tokens" in admission.refused("a", 99).message
    assert admission.crowded and admission.refusal("a") and not admission.refusal("b")
    now[0] += REFUSE_AGAIN
    assert [admission.refusal("a"), admission.crowded] == [None, False]
    for caller in range(2000):
        admission.refused(str(caller), 1)
    assert len(admission._refused) <= 1001


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=60))
def test_all_that_entered_and_left_leaves_nothing(calls: list[tuple[str, int]]) -> None:
    admission = Admission(LIMIT, lambda: 5.0)
    inside: list[tuple[str, int]] = []
    for call in calls:
        if refused := call[0] == "c" and len(inside) % 5 == 4:
            admission.refused(call[0], 1)
        asked = [admission.refusal(caller) for caller in "abcd"]
        assert admission.crowded or not (refused or any(asked)), "nobody is refused who was not looked at"
        if admission.refusal(call[0]) is None:
            admission.enter(*call)
            inside.append(call)
    for call in inside:
        admission.leave(*call)
    assert (admission.total, admission._held) == (0, {})
