"""Artifacts small enough to read: a 2 KB graph whose answers can be computed by hand, a word-level tokenizer.

Word `w<k>` (k < `WORDS`) has the logits `10 * one_hot(k % labels)`. A text's logits are the mean over its
tokens, special tokens counting zero; a tagger gives each token its own, and an encoder's vector is the mean as it
is. So a text of one word repeated has that word's label, and a word outside the vocabulary has logits 0. `poison` has
an id beyond the embedding: any batch that holds it fails.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from app.contracts.manifest import MANIFEST_NAME, FileEntry, Manifest, Serving
from app.contracts.tasks import TaskName

WORDS = 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
IOB2 = ("O", "B-LOC", "I-LOC", "B-PER")


def build(
    folder: Path,
    *,
    task: TaskName = "text-classification",
    labels: Sequence[str] = ("a", "b", "c"),
    multi_label: bool = False,
    max_length: int = 16,
) -> str:
    """Write the artifact into `folder`; returns its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    output = "sentence_embedding" if task == "sentence-embedding" else "logits"
    (folder / "model.onnx").write_bytes(_graph(len(labels), output, pooled=task != "token-classification"))
    _tokenizer().save(str(folder / "tokenizer.json"))
    serving = Serving(
        task=task,
        labels=list(labels) if output == "logits" else [],
        multi_label=multi_label,
        max_length=max_length,
        inputs=["input_ids", "attention_mask"],
        outputs=[output],
        pad_token_id=0,
    )
    return seal(folder, serving)


def seal(folder: Path, serving: Serving) -> str:
    """Write the manifest over the files that `folder` holds now; returns the digest."""
    files = {}
    for name in ("model.onnx", "tokenizer.json"):
        data = (folder / name).read_bytes()
        files[name] = FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    manifest = Manifest(serving=serving, files=files).sealed()
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
    return manifest.digest


def _tokenizer() -> Tokenizer:
    words = [*SPECIAL, *(f"w{k}" for k in range(WORDS)), "poison"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _graph(labels: int, output: str, *, pooled: bool) -> bytes:
    table = np.zeros((len(SPECIAL) + WORDS, labels), dtype=np.float32)
    for k in range(WORDS):
        table[len(SPECIAL) + k, k % labels] = 10.0
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["embedded", "mask3"], ["masked" if pooled else output]),
    ]
    if pooled:
        nodes += [
            helper.make_node("ReduceSum", ["masked", "one"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["mask3", "one"], ["count"], keepdims=0),
            helper.make_node("Div", ["total", "count"], [output]),
        ]
    batch: list[str | int] = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(n, TensorProto.INT64, batch) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", labels] if pooled else [*batch, labels])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
