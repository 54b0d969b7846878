"""Weights taken over from one serialized graph into another are the same, and nothing else comes with them."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from workers.inference.wire import weights

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200)


def model(names: list[str], nodes: list[str]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}-out"]) for name in nodes],
        "a graph",
        [],
        [],
        [numpy_helper.from_array(np.full(len(name) % 7, k, np.float32), name) for k, name in enumerate(names)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@given(st.lists(NAMES, unique=True, max_size=12), st.data())
def test_those_asked_for_come_over_and_no_others(names: list[str], data: st.DataObject) -> None:
    source, wanted = (
        model(names, names),
        set(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else set(),
    )
    target = model([], ["kept"])
    found = onnx.load_model_from_string(target.SerializeToString() + weights(source.SerializeToString(), wanted))
    assert {w.name for w in found.graph.initializer} == wanted
    assert all(w in source.graph.initializer for w in found.graph.initializer)
    assert found.graph.node == target.graph.node
    assert (found.ir_version, found.graph.name) == (target.ir_version, target.graph.name)


def test_bytes_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="no wire type 3 is known at byte 0"):
        weights(b"\x0b", {"a"})
