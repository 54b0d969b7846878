"""The fused graph without padding between its attentions: dense layers see the real tokens of a batch and no others.

A batch of texts of unlike lengths is padded to the longest. Attention needs that form; all else in an encoder treats
each token by itself, and nearly all of the work on padding is there. So the rows of real tokens are gathered before the
first attention, spread out again for each attention, and once more for whatever reads the encoder's output. What stands
on padding afterwards is another token's row: it is masked in attention and in means, and nobody reads it.

An attention's three projections treat each token by itself, too, and are taken out of the fused operator first.

Pure: a graph in, a graph out. Knows no engine.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

_BY_TOKEN = frozenset(
    {"Add", "Sub", "Mul", "Div", "MatMul", "BiasGelu", "Gelu", "FastGelu", "Erf", "Tanh", "Relu", "LayerNormalization"}
)
"""Operators that treat each token by itself, if `_each_token_alone` agrees."""
_ATTENTIONS = frozenset({"Attention", "MultiHeadAttention"})
_THIRDS = "packing.thirds"
_INDEX, _PLACE = "packing.index", "packing.place"
"""Where in the flattened batch each real token stands; which real token stands at each place [batch, sequence]."""


def pack(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Change `model` in place. False, and nothing changed, for a graph without fused attentions over a mask.

    `shapes` of all weights by name: they need not be in `model`.
    """
    graph = model.graph
    first = next((node for node in graph.node if node.op_type == "Attention" and len(node.input) > 2), None)
    bias = first and shapes.get(first.input[2])
    if first is None or not bias or "attention_mask" not in {i.name for i in graph.input}:
        return False
    root, width = first.input[0], bias[0] // 3
    constants = {"packing.flat": np.array([-1]), "packing.rows": np.array([-1, width]), _THIRDS: np.array([width] * 3)}
    constants |= {"packing.zero": np.array(0), "packing.one": np.array(1)}
    ranks = {name: len(shape) for name, shape in shapes.items()}
    packed: set[str] = set()
    nodes: list[NodeProto] = []

    def gathered(name: str) -> list[NodeProto]:
        """[batch, sequence, width] -> [real tokens, width]."""
        return [
            helper.make_node("Reshape", [name, "packing.rows"], [f"{name}.rows"]),
            helper.make_node("Gather", [f"{name}.rows", _INDEX], [f"{name}.packed"]),
        ]

    def spread(name: str) -> NodeProto:
        return helper.make_node("Gather", [f"{name}.packed", _PLACE], [f"{name}.spread"])

    spread_already: set[str] = set()
    for node in [part for whole in graph.node for part in _apart(whole, ranks)]:
        inputs = [name for name in node.input if name in packed]
        alone = bool(inputs) and _each_token_alone(node, packed, ranks)
        for name in () if alone else inputs:
            if name not in spread_already:
                nodes.append(spread(name))
                spread_already.add(name)
        ending = ".packed" if alone else ".spread"
        for position, name in enumerate(node.input):
            if name in packed:
                node.input[position] = name + ending
        nodes.append(node)
        if alone:
            packed.update(node.output)
            node.output[:] = [f"{name}.packed" for name in node.output]
        elif root in node.output:
            nodes += [*_indices(), *gathered(root)]
            packed.add(root)
        elif node.op_type in _ATTENTIONS and inputs:
            nodes += gathered(node.output[0])
            packed.add(node.output[0])
    for output in graph.output:
        if output.name in packed:
            nodes.append(helper.make_node("Gather", [f"{output.name}.packed", _PLACE], [output.name]))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return True


def _apart(node: NodeProto, ranks: dict[str, int]) -> list[NodeProto]:
    """An `Attention` as three projections and a `MultiHeadAttention`; another node as it is. Adds to `ranks`.

    ONNX Runtime projects for each row and head by itself, a matrix product of one text's tokens by 32 columns: 12 texts
    of 11 tokens take 0.9 ms a layer in MiniLM-L6, and 0.78 with the projections of all of them in three products.
    """
    settings = {attribute.name: attribute for attribute in node.attribute}
    sizes = list(settings["qkv_hidden_sizes"].ints) if "qkv_hidden_sizes" in settings else []
    plain = settings.keys() <= {"num_heads", "scale", "qkv_hidden_sizes"} and len(set(sizes)) <= 1
    if node.op_type != "Attention" or not plain or len(node.input) < 3 or any(node.input[3:5]):
        return [node]
    source, weight, bias, *rest = node.input
    weights, biases, projections, sums = (
        [f"{node.output[0]}.{which}.{what}" for which in ("query", "key", "value")]
        for what in ("weight", "bias", "projection", "sum")
    )
    ranks |= dict.fromkeys(weights, 2) | dict.fromkeys(biases, 1)
    parts = [
        helper.make_node("Split", [weight, _THIRDS], weights, axis=1),
        helper.make_node("Split", [bias, _THIRDS], biases, axis=0),
        *(helper.make_node("MatMul", [source, w], [p]) for w, p in zip(weights, projections, strict=True)),
        *(helper.make_node("Add", [p, b], [s]) for p, b, s in zip(projections, biases, sums, strict=True)),
        helper.make_node("MultiHeadAttention", [*sums, "", *rest[:1], *rest[2:3]], node.output, domain=node.domain),
    ]
    parts[-1].attribute.extend(found for name, found in settings.items() if name != "qkv_hidden_sizes")
    return parts


def _indices() -> list[NodeProto]:
    return [
        helper.make_node("Reshape", ["attention_mask", "packing.flat"], ["packing.mask"]),
        helper.make_node("NonZero", ["packing.mask"], ["packing.found"]),
        helper.make_node("Reshape", ["packing.found", "packing.flat"], [_INDEX]),
        helper.make_node("CumSum", ["packing.mask", "packing.zero"], ["packing.count"]),
        helper.make_node("Sub", ["packing.count", "packing.one"], ["packing.number"]),
        helper.make_node("Shape", ["attention_mask"], ["packing.shape"]),
        helper.make_node("Reshape", ["packing.number", "packing.shape"], [_PLACE]),
    ]


def _each_token_alone(node: NodeProto, packed: set[str], ranks: dict[str, int]) -> bool:
    """Whether the node's output for a token follows from that token and weights alone."""
    if node.op_type not in _BY_TOKEN:
        return False
    if node.op_type == "MatMul":
        return node.input[0] in packed and ranks.get(node.input[1]) == 2
    if node.op_type == "LayerNormalization":
        return all(a.i == -1 for a in node.attribute if a.name == "axis")
    return all(name in packed or ranks.get(name, 2) <= 1 for name in node.input)
