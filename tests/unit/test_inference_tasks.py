"""From inputs to outputs, computed by hand on the toy graphs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.contracts.tasks import TASKS as MENU
from app.contracts.tasks import TaskName
from tests import toy_artifact
from workers.codecs.text import pad
from workers.inference.sessions import LoadedVersion, load
from workers.inference.tasks import TASKS
from workers.inference.tasks.base import BadInput
from workers.inference.tasks.token_classification import entities, repair_iob2


def loaded(folder: Path, task: TaskName = "text-classification", **options: Any) -> LoadedVersion:
    digest = toy_artifact.build(folder, task=task, **options)
    return load("v1", folder, digest, "onnxruntime-cpu", folder / "providers.json")


def answer(version: LoadedVersion, inputs: list[Any], parameters: dict[str, Any] | None = None) -> list[Any]:
    prepared = version.prepare(version.codec, version.serving, inputs, parameters or {})
    ids, mask = pad(prepared.rows, 0)
    logits = version.runtime.run(ids, mask)
    if logits.ndim == 2:
        return prepared.finish(list(logits))
    return prepared.finish([row[: len(r)] for row, r in zip(logits, prepared.rows, strict=True)])


def test_the_table_holds_the_tasks_of_the_menu() -> None:
    assert TASKS.keys() == MENU.keys()


def test_text_label_and_score(tmp_path: Path) -> None:
    outputs = answer(loaded(tmp_path), ["w1 w1", {"text": "w5 w5 w5"}, "unheard words", ""])
    # [CLS] w1 w1 [SEP]: mean of 0, 10, 10, 0 is 5.
    assert outputs[0] == {"label": "b", "score": pytest.approx(math.exp(5) / (math.exp(5) + 2))}
    assert [output["label"] for output in outputs[:2]] == ["b", "c"]
    assert [output["score"] for output in outputs[2:]] == [pytest.approx(1 / 3)] * 2


def test_scores_are_ranked_and_cut(tmp_path: Path) -> None:
    version = loaded(tmp_path)
    (whole,) = answer(version, ["w2 w2 w2 w1"], {"return_all_scores": True})
    (best,) = answer(version, ["w2 w2 w2 w1"], {"top_k": 2})
    assert [entry["label"] for entry in whole["scores"]] == ["c", "b", "a"]
    assert sum(entry["score"] for entry in whole["scores"]) == pytest.approx(1)
    assert best["scores"] == whole["scores"][:2]
    assert whole["score"] == whole["scores"][0]["score"]


def test_multi_label_threshold(tmp_path: Path) -> None:
    version = loaded(tmp_path, multi_label=True)
    (usual,) = answer(version, ["w0 w1 w1"])
    (strict,) = answer(version, ["w0 w1 w1"], {"threshold": 0.9, "return_all_scores": True})
    # Means over 5 tokens: a = 2, b = 4, c = 0; sigmoid(0) is exactly 0.5.
    assert [entry["label"] for entry in usual["labels"]] == ["b", "a", "c"]
    assert usual["labels"][0]["score"] == pytest.approx(1 / (1 + math.exp(-4)))
    assert "scores" not in usual
    assert [entry["label"] for entry in strict["labels"]] == ["b"]
    assert [entry["label"] for entry in strict["scores"]] == ["b", "a", "c"]


def test_entities_of_a_text_have_its_offsets(tmp_path: Path) -> None:
    version = loaded(tmp_path, "token-classification", labels=toy_artifact.IOB2)
    text = "w0  w1 w2,w2 w3\tw6"  # O B-LOC I-LOC (comma: logits 0, the first label, O) I-LOC B-PER I-LOC
    (output,) = answer(version, [text])
    assert [(e["label"], e["text"], e["start"], e["end"]) for e in output["entities"]] == [
        ("LOC", "w1 w2", 4, 9),
        ("LOC", "w2", 10, 12),
        ("PER", "w3", 13, 15),
        ("LOC", "w6", 16, 18),
    ]
    assert "tags" not in output
    assert output["entities"][0]["score"] == pytest.approx(math.exp(10) / (math.exp(10) + 3), rel=1e-4)


def test_one_tag_for_each_token_beyond_the_maximum_length(tmp_path: Path) -> None:
    version = loaded(tmp_path, "token-classification", labels=toy_artifact.IOB2, max_length=16)
    tokens = [f"w{k % toy_artifact.WORDS}" for k in range(101)]
    long, blank, empty = answer(version, [{"tokens": tokens}, {"tokens": ["w1", " ", "w2"]}, {"tokens": []}])
    assert long["tags"] == repair_iob2([toy_artifact.IOB2[k % 32 % 4] for k in range(101)])
    assert all(" ".join(tokens)[e["start"] : e["end"]] == e["text"] for e in long["entities"])
    assert blank["tags"] == ["B-LOC", "O", "B-LOC"]
    assert empty == {"entities": [], "tags": []}


def test_entity_score_is_the_mean_over_words() -> None:
    (entity,) = entities("new york", [("new", 0, 3), ("york", 4, 8)], ["B-LOC", "I-LOC"], [0.5, 1.0])
    assert entity == {"label": "LOC", "text": "new york", "start": 0, "end": 8, "score": 0.75}


def test_iob2_repair_starts_an_entity_where_conlleval_counts_one() -> None:
    assert repair_iob2(["I-A", "I-A", "O", "I-A", "B-B", "I-A", "I-A", "B-A", "I-A"]) == [
        "B-A", "I-A", "O", "B-A", "B-B", "B-A", "I-A", "B-A", "I-A",
    ]  # fmt: skip


def test_a_vector_is_packed_as_float32_and_cut_to_length_one(tmp_path: Path) -> None:
    version = loaded(tmp_path, "sentence-embedding", labels="abcd")
    texts = ["w1 w2 w3", {"text": "w3"}, "unheard"]
    whole = [np.frombuffer(vector, "<f4") for vector in answer(version, texts)]
    # [CLS] w1 w2 w3 [SEP]: a mean over 5 tokens; the graph's own numbers are left as they are.
    np.testing.assert_allclose(whole, np.array([[0, 2, 2, 2], [0, 0, 0, 10 / 3], [0, 0, 0, 0]]), rtol=1e-6)
    cut = [np.frombuffer(vector, "<f4") for vector in answer(version, texts, {"dimensions": 3})]
    np.testing.assert_allclose(cut, np.array([[0, 0.5**0.5, 0.5**0.5], [0, 0, 0], [0, 0, 0]]), rtol=1e-6)
    more = [np.frombuffer(vector, "<f4") for vector in answer(version, texts, {"dimensions": 5})]
    np.testing.assert_array_equal(more, whole)  # the gateway says that there are fewer


def test_token_ids_and_texts_keep_their_order(tmp_path: Path) -> None:
    version = loaded(tmp_path, "sentence-embedding", labels="abcd")
    mixed: list[Any] = [{"input_ids": [2, 5, 3]}, "w2", {"input_ids": [7]}, "w1"]
    assert version.prepare(version.codec, version.serving, mixed, {}).rows == [[2, 5, 3], [2, 6, 3], [7], [2, 5, 3]]


@pytest.mark.parametrize("ids", [[], [37], [-1], [4] * 17])
def test_token_ids_the_model_does_not_have_are_named(tmp_path: Path, ids: list[int]) -> None:
    version = loaded(tmp_path, "sentence-embedding", labels="abcd")
    with pytest.raises(BadInput) as caught:
        answer(version, ["fine", {"input_ids": ids}])
    assert caught.value.index == 1


@pytest.mark.parametrize("value", [7, {"tokens": ["a", 1]}, {"tokens": "a"}, {"text": None}, {}])
def test_unreadable_input_is_named(tmp_path: Path, value: Any) -> None:
    version = loaded(tmp_path, "token-classification", labels=toy_artifact.IOB2)
    with pytest.raises(BadInput) as caught:
        answer(version, ["fine", value])
    assert caught.value.index == 1
