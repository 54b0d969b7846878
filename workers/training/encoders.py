"""An untrained encoder as an artifact that gives sentence vectors: nothing is trained, nothing is chosen.

The vectors are those of sentence-transformers: mean over the real tokens, length 1, text cut where the model says.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from app.contracts.manifest import Serving
from app.contracts.training import Finished, TrainingSpec
from workers.codecs.text import TextCodec
from workers.training import device, export
from workers.training.errors import TrainingFailed
from workers.training.models import Base, load_encoder, mean_pooled, open_base
from workers.training.reporter import Reporter

OUTPUTS = ["sentence_embedding"]
"""As sentence-transformers names it; the exporter names a node of most encoders `embedding`."""
TOLERANCE = 1e-4
"""Largest difference of a number of a vector of length 1. Both sides compute in float32 and differ by about 1e-7."""


class SentenceEncoder(nn.Module):
    """`forward(input_ids, attention_mask)` [rows, sequence] int64 -> [rows, hidden size] float32, each of length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return nn.functional.normalize(mean_pooled(hidden, attention_mask).float(), dim=1)


def export_base(spec: TrainingSpec, reporter: Reporter) -> None:
    """Write the artifact of `spec.base_model`; ends with `Finished`. Raises `TrainingFailed` and `Stopped`."""
    device.prepare(spec.seed, None)
    base = open_base(Path(spec.base_model_path))
    _refuse_others(base, spec.base_model)
    model = SentenceEncoder(load_encoder(base)).eval()
    stated = _stated(base, "sentence_bert_config.json", {}).get("max_seq_length")
    max_length = min(base.max_length, stated or base.max_length)
    reporter.phase("exporting")
    artifact = Path(spec.output) / "artifact"
    artifact.mkdir(parents=True)
    export.export_onnx(model, artifact / "model.onnx", pad_token_id=base.pad_token_id, outputs=OUTPUTS)
    reporter.check()
    codec = TextCodec(base.tokenizer_file, max_length=max_length, pad_token_id=base.pad_token_id)
    parity = check_parity(model, artifact / "model.onnx", vocabulary=codec.vocabulary, max_length=max_length)
    # The weights stay where they are: nothing starts from this artifact that could not start from the base model.
    shutil.copyfile(base.path / "config.json", artifact / "config.json")
    export.save_tokenizer(base, artifact)
    serving = Serving(
        task=spec.task,
        labels=[],
        max_length=max_length,
        inputs=export.INPUTS,
        outputs=OUTPUTS,
        pad_token_id=base.pad_token_id,
    )
    info = {
        "base_model": spec.base_model,
        "base_model_revision": spec.base_model_revision,
        "pooling": "mean, normalized",
        "parity": parity,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "onnxruntime")},
    }
    export.seal(artifact, serving, info)
    reporter.emit(
        Finished(metrics={}, datasets={}, parity=parity, trained_tokens=0, train_seconds=0.0, samples_per_second=0.0)
    )


def check_parity(model: SentenceEncoder, graph: Path, *, vocabulary: int, max_length: int) -> dict[str, float]:
    """Run random tokens through torch and the graph, at three shapes up to the full length, with padding.

    Raises `TrainingFailed` (`parity_failed`) when a number differs by more than `TOLERANCE`.
    """
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    draw, worst, rows = np.random.default_rng(0), 0.0, 0
    for count, length in ((1, 3), (5, min(16, max_length)), (2, max_length)):
        # The lower half: some tokenizers know ids that their model has no row for.
        ids = draw.integers(0, max(1, vocabulary // 2), (count, length), dtype=np.int64)
        mask = (np.arange(length) < draw.integers(1, length + 1, (count, 1))).astype(np.int64)
        with torch.no_grad():
            expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        (got,) = session.run(OUTPUTS, {"input_ids": ids, "attention_mask": mask})
        difference = float(np.abs(expected - got).max())
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
        rows += count
    if worst > TOLERANCE:
        raise TrainingFailed(
            "parity_failed",
            f"the ONNX graph differs from torch by {worst:.2g} in a number of a sentence vector (limit {TOLERANCE:g}): "
            "use another base model, and report this one",
        )
    return {"max_abs_diff": worst, "rows": float(rows), "tolerance": TOLERANCE}


def _refuse_others(base: Base, name: str) -> None:
    """Raises `TrainingFailed` for what has no sentence vectors, or makes them by another rule than ours."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = base.config.model_type
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or base.config.is_encoder_decoder:
        raise _refused(f"{name!r} is a {kind} model, which is no encoder and has no sentence vectors")
    pooling = _stated(base, "1_Pooling/config.json", {})
    others = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    if pooling and others != ["pooling_mode_mean_tokens"]:
        raise _refused(
            f"{name!r} wants {', '.join(others) or 'no pooling'}, and only the mean over tokens is known here"
        )
    for step in _stated(base, "modules.json", []):
        if step["type"].rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize"):
            raise _refused(f"{name!r} has a step {step['type']!r} after its encoder, which is not known here")


def _refused(message: str) -> TrainingFailed:
    return TrainingFailed("base_model", f"{message}: use an encoder such as all-MiniLM-L6-v2", param="model")


def _stated(base: Base, name: str, default: Any) -> Any:
    """What sentence-transformers wrote beside the weights, if it did."""
    return json.loads((base.path / name).read_text()) if (base.path / name).is_file() else default
