"""The trained weights in a checkpoint: written between steps, read into a plain model to serve or to start from.

A token embedding that trains only its used rows (`embeddings.py`) is saved as those rows and their ids, so that a
run over other texts can start from them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.training.embeddings import UsedRows
from workers.training.models import TaskModel

WEIGHTS = "weights.safetensors"
_USED_IDS, _ROWS = "used_token_ids", ".rows"


def save_weights(trained: Mapping[str, Tensor], model: TaskModel, folder: Path) -> None:
    """Write what trains."""
    table = cast(Any, model.encoder).get_input_embeddings()
    used = {_USED_IDS: table.used} if isinstance(table, UsedRows) else {}
    save_file({**trained, **used}, folder / WEIGHTS)


def start_from(model: TaskModel, folder: Path) -> None:
    """Copy a checkpoint's weights into a model whose tuner is attached and whose embedding is whole."""
    saved = load_file(folder / WEIGHTS)
    used = saved.pop(_USED_IDS, None)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in saved.items():
            if used is not None and name.endswith(_ROWS):
                parameters[name.removesuffix(_ROWS) + ".weight"][used] = tensor
            else:
                parameters[name].copy_(tensor)
