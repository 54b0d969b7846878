"""The same graph in the operators that engines are fast at: attention, GELU with its bias. Written at publication.

`model.onnx` has standard operators only, a dozen for each attention. Every engine reads it, and none finds all that
could be fused. onnxscript does, in 0.6 s of Python, which no inference worker should spend on a load while it serves.
So the artifact has `fused.onnx` beside it: the fused graph without its weights, which are those of `model.onnx`.
MiniLM-L6 in ONNX Runtime takes 11 % less time for 8 texts of 12 tokens, 14 % less for 4 of 128 and for one alone.

A graph in which nothing is found, or whose fused form answers otherwise, has no such file, and is served as it is.
"""

import hashlib
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx_ir.passes import common
from onnxscript import ir, optimizer
from onnxscript.rewriter.ort_fusions import shape_optimization
from onnxscript.rewriter.ort_fusions.attention import fuse_attention
from onnxscript.rewriter.ort_fusions.bias_gelu import fuse_bias_gelu
from onnxscript.rewriter.ort_fusions.erfgelu import fuse_erfgelu
from onnxscript.rewriter.ort_fusions.mha import fuse_mha1, fuse_mha2
from onnxscript.rewriter.ort_fusions.mha_bias import fuse_mha_bias
from onnxscript.rewriter.ort_fusions.mha_scale import fuse_mha_scale
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa

from app.contracts.manifest import FUSED_NAME, FUSED_OF

TOLERANCE = 1e-4
"""Largest difference of an output from the standard graph's, relative to 1 or to the largest output. Both compute in
float32 and differ by about 1e-6."""
SHAPES = ((1, 3), (3, 9), (2, 16))

log = logging.getLogger(__name__)


def write_fused(path: Path, *, vocabulary: int) -> bool:
    """Write `fused.onnx` beside the graph at `path`, if there is one to write and it answers alike.

    `vocabulary` bounds the token ids of the rows that are compared.
    """
    data = path.read_bytes()
    model = onnx.load_model_from_string(data)
    try:
        fused = ir.to_proto(_fuse(ir.from_proto(model)))
        if not any(node.domain == "com.microsoft" for node in fused.graph.node):
            return False
        difference = _difference(data, fused.SerializeToString(), vocabulary)
    except Exception as exc:  # the library may trip over a graph that it does not know; that graph is served as it is
        log.warning("the graph cannot be fused: %s: %s", type(exc).__name__, exc)
        return False
    if not difference <= TOLERANCE:
        log.warning("the fused graph differs by %g (limit %g) and is left out", difference, TOLERANCE)
        return False
    kept = {weight.name: weight for weight in model.graph.initializer}
    own = [weight for weight in fused.graph.initializer if kept.get(weight.name) != weight]
    del fused.graph.initializer[:], fused.graph.value_info[:]
    fused.graph.initializer.extend(own)
    for node in fused.graph.node:
        del node.metadata_props[:]
    onnx.helper.set_model_props(fused, {FUSED_OF: hashlib.sha256(data).hexdigest()})
    (path.parent / FUSED_NAME).write_bytes(fused.SerializeToString(deterministic=True))
    return True


def _fuse(model: ir.Model) -> ir.Model:
    """As onnxscript's `optimize_for_ort`, without the sum before a LayerNormalization, which ONNX Runtime computes on a
    processor in seven times the time of the two apart (1.32: 190 microseconds against 29 for 96 tokens of 384)."""
    common.ShapeInferencePass()(model)
    optimizer.optimize(model)
    shape_optimization.rules.apply_to_model(model)
    optimizer.optimize(model)
    fuse_erfgelu(model)
    common.CommonSubexpressionEliminationPass()(model)
    fuse_sdpa(model, apply_shape_inference=True)
    for fuse in (fuse_mha1, fuse_mha2, fuse_mha_scale, fuse_mha_bias, fuse_attention, fuse_bias_gelu):
        fuse(model)
    optimizer.optimize(model)  # puts back in simple operators what no later step took up
    return model


def _difference(model: bytes, fused: bytes, vocabulary: int) -> float:
    """Largest of any output, over random rows with padding."""
    sessions = [onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]) for data in (model, fused)]
    names = {i.name for i in sessions[0].get_inputs()}
    draw, worst = np.random.default_rng(0), 0.0
    for rows, tokens in SHAPES:
        # The lower half: some tokenizers know ids that their model has no row for.
        ids = draw.integers(0, max(1, vocabulary // 2), (rows, tokens), dtype=np.int64)
        mask = (np.arange(tokens) < draw.integers(1, tokens + 1, (rows, 1))).astype(np.int64)
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        expected, found = (s.run(None, {name: known[name] for name in names})[0] for s in sessions)
        if expected.ndim == 3:  # what stands on padding is never read
            expected, found = expected[mask == 1], found[mask == 1]
        worst = max(worst, float(np.abs(expected - found).max() / max(1.0, np.abs(expected).max())))
    return worst
