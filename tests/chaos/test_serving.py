"""The short run of serving under faults: a kill, four stops, a few swaps in one fleet. And: the checks can fail."""

from pathlib import Path

from tests.chaos.harness import Harness
from tests.chaos.serving.callers import Call, Question
from tests.chaos.serving.faults import kills, terminations
from tests.chaos.serving.traffic import Move, current, swaps

SEED = 2


def test_serving_promises_hold_under_faults(tmp_path: Path) -> None:
    h = Harness(tmp_path, SEED, 0.012, lambda _what, _share: None)
    with h.fleet("serving") as fleet:
        rows = [row for scenario in (kills, terminations, swaps) for row in scenario(h, fleet)]
    assert [row for row in rows if not row.ok] == []


def test_a_row_of_another_version_or_place_is_noticed() -> None:
    labels = {"m:1": ["a", "b"], "m:2": ["c", "d"]}
    question = Question("m", words=(0, 1), lengths=(1, 1))

    def problem(model: str, *found: str) -> str:
        return question.problem({"model": model, "outputs": [{"label": label} for label in found]}, labels)

    assert not problem("m:1", "a", "b")
    assert not problem("m:2", "c", "d")
    for model, found in (("m:1", "ad"), ("m:2", "ab"), ("m:1", "ba"), ("m:1", "a"), ("m:1", "aba")):
        assert problem(model, *found)


def test_an_answer_by_a_version_that_was_replaced_is_late() -> None:
    moves = [Move(0.0, 0.0, "m:1", 0), Move(10.0, 10.1, "m:2", 80)]

    def late(began: float, model: str, port: int) -> bool:
        return not current(Call(port, began, began + 0.1, 200, model), moves)

    assert not late(9.95, "m:2", 81)  # the alias moved while it was answered
    assert late(9.0, "m:2", 81)
    assert not late(10.05, "m:1", 80)
    assert late(10.2, "m:1", 80)  # here the alias was moved
    assert not late(12.0, "m:1", 81)  # this gateway remembers what it was
    assert late(13.0, "m:1", 81)
    assert not late(13.0, "m:2", 81)
