"""`/v1/moderations` on a trained classifier of several labels, through the stock client."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from app.api.schemas.openai import OPENAI_CATEGORIES, ModerationResult
from app.core.ids import new_id
from app.core.settings import Settings
from app.registry.session import Database
from tests.integration.helpers import error
from tests.integration.toy_service import ToyService, toy_service

RULES = f"rules-{new_id('')[:8]}"
LABELS = ("spam", "hate", "rude")


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, admin_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ToyService]:
    with toy_service(settings, database, admin_key, tmp_path_factory.mktemp("moderations")) as found:
        found.add(RULES, labels=LABELS, multi_label=True)
        found.add(f"{RULES}-one", labels=LABELS)
        found.add(f"{RULES}-tags", task="token-classification", labels=("O", "B-x"))
        yield found


def moderate(service: ToyService, **body: Any) -> Any:
    return service.client.post("/v1/moderations", json=body)


@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_the_stock_client(service: ToyService, strict: bool) -> None:
    client = service.openai(strict=strict)
    found = client.moderations.create(model=RULES, input=["w1 w1", "w0"])
    assert found.id.startswith("modr-") and found.model == f"{RULES}:1"
    hate, spam = found.results
    # Logits are means over the tokens, [CLS] and [SEP] included; sigmoid(0) is exactly 0.5, which holds.
    assert hate.flagged and hate.categories.hate and not hate.categories.violence
    assert hate.category_scores.hate == pytest.approx(1 / (1 + math.exp(-5)))
    assert spam.category_scores.hate == 0.5 and spam.category_scores.self_harm_intent == 0.0
    assert hate.category_applied_input_types.hate == ["text"]
    assert hate.category_applied_input_types.illicit_violent == []
    extra = spam.categories.model_extra
    assert extra is not None and extra["spam"] is True


def test_every_label_and_every_name_of_openai_has_a_score(service: ToyService) -> None:
    answer = moderate(service, model=RULES, input="w2")
    (result,) = answer.json()["results"]
    assert set(result["categories"]) == {*LABELS, *OPENAI_CATEGORIES}
    for part in ("category_scores", "category_applied_input_types"):
        assert set(result[part]) == set(result["categories"])
    assert len(OPENAI_CATEGORIES) == 13
    several = moderate(service, model=RULES, input=[f"w{i % 31}" for i in range(200)]).json()["results"]
    best = [max(LABELS, key=r["category_scores"].get) for r in several]
    assert best == [LABELS[i % 31 % 3] for i in range(200)]


def test_below_one_half_nothing_is_flagged() -> None:
    """Which the toy never gives: its logits are 0 or more."""
    result = ModerationResult.of({"spam": 0.4999, "rude": 0.0}, 0.5)
    assert not result.flagged and not any(result.categories.values())


@pytest.mark.parametrize(
    ("body", "param", "code", "words"),
    [
        ({"input": "w1"}, "model", "missing_field", "name a trained text classifier of several labels"),
        ({"model": f"{RULES}-one", "input": "w1"}, "model", "task_mismatch", "one answer a text"),
        ({"model": f"{RULES}-tags", "input": "w1"}, "model", "task_mismatch", "token-classification"),
        ({"model": RULES}, "input", "missing_field", "required"),
        ({"model": RULES, "input": []}, "input", "invalid_request", "1 to 1,024"),
        ({"model": RULES, "input": [7]}, "input[0]", "invalid_request", "not int"),
        (
            {"model": RULES, "input": ["w1", {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
            "input[1]",
            "invalid_request",
            "not an image: this service moderates text only",
        ),
    ],
)
def test_what_cannot_be_moderated_is_named(
    service: ToyService, body: dict[str, Any], param: str, code: str, words: str
) -> None:
    found = error(moderate(service, **body), 400)
    assert (found["param"], found["code"]) == (param, code) and words in found["message"]
