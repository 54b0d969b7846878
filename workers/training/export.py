"""From the trained module to the files of an artifact: ONNX graph, weights, tokenizer, config, sealed
manifest.

Knows file formats; the parity gate in `parity.py` decides whether the graph may be published.
"""

import hashlib
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from app.contracts.manifest import MANIFEST_NAME, FileEntry, Manifest, Serving
from workers.training.fusion import write_fused
from workers.training.models import Base, TaskModel

OPSET = 18
INPUTS = ["input_ids", "attention_mask"]
OUTPUTS = ["logits"]


def export_onnx(model: nn.Module, path: Path, *, pad_token_id: int, outputs: list[str] = OUTPUTS) -> None:
    """Write the float32 graph: `input_ids`, `attention_mask` int64 [batch, sequence] -> `logits` float32, and beside it
    its fused form (`fusion.py`).

    The sample has two rows of different lengths: a size of 0 or 1 would be frozen into the graph.
    """
    model.eval().to("cpu")
    ids = torch.full((2, 8), pad_token_id, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings():
        # The exporter warns about its own internals (deprecated tree specs, renamed axes); parity is what
        # counts.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is absent
        torch.onnx.export(
            model,
            (),
            str(path),
            kwargs={"input_ids": ids, "attention_mask": mask},
            input_names=INPUTS,
            output_names=outputs,
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    tokens = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    write_fused(path, vocabulary=tokens.num_embeddings)


def save_model(model: TaskModel, base: Base, labels: list[str], folder: Path) -> None:
    """Write `model.safetensors`, `config.json` and the tokenizer's files."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((base.path / "config.json").read_text())
    config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    config["label2id"] = {label: i for i, label in enumerate(labels)}
    config["modelwright"] = {"head": "mean-pooled" if model.pooled else "per-token"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (folder / "model.safetensors").chmod(0o644)  # as the other files: it is written through a private temporary
    save_tokenizer(base, folder)


def save_tokenizer(base: Base, folder: Path) -> None:
    """Copy the tokenizer's files."""
    shutil.copyfile(base.tokenizer_file, folder / "tokenizer.json")
    settings = base.path / "tokenizer_config.json"
    if settings.is_file():
        shutil.copyfile(settings, folder / settings.name)


def seal(folder: Path, serving: Serving, info: dict[str, Any]) -> Manifest:
    """Hash every file and write the manifest, last: a folder without one is no artifact."""
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.name != MANIFEST_NAME):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[path.name] = FileEntry(sha256=digest, bytes=path.stat().st_size)
    manifest = Manifest(serving=serving, files=files, info=info).sealed()
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest
