"""Who answers: shares, sticky keys, what a rollback goes back to, what counts as agreement."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from app.contracts.aliases import AliasSet
from app.contracts.manifest import Serving
from app.contracts.messages import PredictReply
from app.core.metrics import VersionMetrics
from app.registry.aliases import stand_before
from app.registry.tables import AliasChangeRow
from app.services.models import ServableVersion
from app.services.shadow import MAX_INPUTS, Shadow, decision
from app.services.traffic import Draws, Route, place

SERVING = Serving(
    task="text-classification", labels=["a", "b"], max_length=8, inputs=["input_ids"], outputs=["logits"],
    pad_token_id=0,
)  # fmt: skip


# --- shares ---


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), st.integers(1, 7))
def test_shares_are_kept_to_half_a_point_over_2000_calls_also_of_every_nth(parts: list[int], every: int) -> None:
    shares = [part / sum(parts) for part in parts]
    route = Route.split("m@production", range(len(shares)), shares)
    draws, counts = Draws(), [0] * len(shares)
    for call in range(2000 * every):
        chosen = route.choose(None, draws)
        if call % every == 0:
            counts[chosen] += 1
    assert all(abs(count / 2000 - share) < 0.005 for count, share in zip(counts, shares, strict=True))


def test_a_sticky_key_has_one_place_in_every_process() -> None:
    # Written down, not computed: another hash, or Python's own, would send every user elsewhere.
    assert place("model-1@production", "user-7") == 0.7150203186988707
    assert place("model-1@production", "user-7") != place("model-1@staging", "user-7")
    assert place("ab", "c") != place("a", "bc")
    assert 0.0 <= place("", "\ud800") < 1.0  # a lone surrogate is a key like any other


def test_sticky_keys_fall_by_the_shares_and_stay_when_a_canary_grows() -> None:
    keys, draws = [f"user-{n}" for n in range(2000)], Draws()

    def canary(share: float) -> set[str]:
        route = Route.split("m@production", (3, 4), (1 - share, share))
        chosen = {key for key in keys if route.choose(key, draws) == 4}
        assert chosen == {key for key in keys if route.choose(key, draws) == 4}
        return chosen

    tenth, fifth = canary(0.1), canary(0.2)
    assert abs(len(tenth) / 2000 - 0.1) < 0.02
    assert abs(len(fifth) / 2000 - 0.2) < 0.02
    assert tenth < fifth


# --- what may be asked ---


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "either a version"),
        ({"version": 1, "weights": {"1": 1.0}}, "either a version"),
        ({"weights": {"1": 0.9, "2": 0.2}}, "add up to 1.1; they must add up to 1"),
        ({"weights": {}}, "at least 1"),
        ({"weights": {"01": 1.0}}, "pattern"),
        ({"weights": {"1": -0.5, "2": 1.5}}, "greater than or equal to 0"),
        ({"weights": {"1": float("nan")}}, "less than or equal to 1"),
        ({"weights": {str(n): 1 / 17 for n in range(1, 18)}}, "at most 16"),
        ({"version": 3, "shadow": 3}, "version 3 answers already"),
        ({"weights": {"3": 0.5, "4": 0.5}, "shadow": 4}, "version 4 answers already"),
        ({"shadow": 4}, "either a version"),
    ],
)
def test_an_alias_that_makes_no_sense_is_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AliasSet.model_validate(body)


def test_shares_may_miss_1_by_rounding() -> None:
    assert AliasSet.model_validate({"weights": {"1": 0.7, "2": 0.2, "3": 0.1}}).shares == {1: 0.7, 2: 0.2, 3: 0.1}
    assert AliasSet.model_validate({"version": 3, "shadow": 4}).shares == {3: 1.0}


# --- rollback ---


def history(*actions: str) -> list[AliasChangeRow]:
    """Changes in order: a version's name is a `set`, `-` a deletion, `<` a rollback."""
    kinds = {"-": "delete", "<": "rollback"}
    return [
        AliasChangeRow(action=kinds.get(action, "set"), version_id=None if action in kinds else action)
        for action in actions
    ]


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ("", None),
        ("a", None),
        ("ab", "a"),
        ("abc<", "a"),
        ("abc<<", None),
        ("abc<d", "b"),  # from d back to b, which the rollback had brought
        ("abc<d<", "a"),
        ("a-", "a"),
        ("a-<", None),
        ("a-b", "a"),
        ("ab-b<", "a"),
        ("-", None),
    ],
)
def test_each_rollback_goes_one_change_further_back(actions: str, expected: str | None) -> None:
    found = stand_before(history(*actions))
    assert (found.version_id if found else None) == expected


@given(st.lists(st.sampled_from("ab-<"), max_size=30))
def test_a_rollback_goes_back_to_a_state_with_a_version_or_nowhere(actions: list[str]) -> None:
    found = stand_before(history(*actions))
    assert found is None or found.version_id in ("a", "b")


# --- shadow ---


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"label": "a", "score": 0.9}, {"label": "a", "score": 0.6}, True),
        ({"label": "a", "score": 0.9}, {"label": "b", "score": 0.9}, False),
        ({"label": "a", "scores": [{"label": "a", "score": 1}]}, {"label": "a", "scores": []}, True),
        ({"labels": [{"label": "a"}, {"label": "b"}]}, {"labels": [{"label": "b"}, {"label": "a"}]}, True),
        ({"labels": []}, {"labels": [{"label": "a", "score": 0.5}]}, False),
        ({"entities": [{"label": "LOC", "start": 0}]}, {"entities": [{"label": "LOC", "start": 1}]}, False),
        ({"tags": ["O", "B-LOC"]}, {"tags": ["B-LOC", "O"]}, False),
    ],
)
def test_agreement_is_about_decisions(one: Any, other: Any, same: bool) -> None:
    assert (decision(one) == decision(other)) is same


class HeldPlane:
    """Answers when it is let go: no real queue can be made to hold every shadow and no caller."""

    def __init__(self) -> None:
        self.let_go, self.asked = asyncio.Event(), 0

    async def predict(self, version_id: str, inputs: list[Any], *_: Any, caller: str) -> PredictReply:
        self.asked += 1
        await self.let_go.wait()
        return PredictReply(id="", outputs=[{"label": "a"} for _ in inputs])


async def test_copies_over_the_bound_are_skipped_and_counted() -> None:
    plane, registry = HeldPlane(), CollectorRegistry()
    shadow = Shadow(plane, VersionMetrics(registry))  # type: ignore[arg-type]
    version = ServableVersion("v1", "m:1", SERVING, shadow=ServableVersion("v2", "m:2", SERVING))

    def count(agree: str) -> float:
        labels = {"model": "m:1", "shadow": "m:2", "agree": agree}
        return registry.get_sample_value("modelwright_shadow_inputs_total", labels) or 0.0

    def send(inputs: int) -> None:
        shadow.mirror(version, ["x"] * inputs, {}, [{"label": "a"}] * inputs)

    send(MAX_INPUTS + 1)  # alone it may be larger
    send(1)
    assert plane.asked == 0  # not before this task, which has an answer to send, waits
    await asyncio.sleep(0)
    assert (plane.asked, count("skipped")) == (1, 1)
    plane.let_go.set()
    async with asyncio.timeout(5):
        while not count("yes"):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert count("yes") == MAX_INPUTS + 1
    send(1)
    await asyncio.sleep(0)
    assert plane.asked == 2
