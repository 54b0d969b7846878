"""A base encoder with a head: what every classification task trains. Knows architectures, not tasks or files'
meaning.

The encoder sits under its own `base_model_prefix`, so the saved state dict loads with
`AutoModel.from_pretrained`.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from workers.training.errors import TrainingFailed

# Position ids of these start after the padding id: a table of 514 holds 512 tokens.
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "xmod",
    "data2vec-text",
    "mpnet",
}
# Dropout of attention weights forbids the fused attention kernel; the other dropouts stay.
_ATTENTION_DROPOUT = {"attention_probs_dropout_prob", "attention_dropout"}


@dataclass(frozen=True, slots=True)
class Base:
    """What is known of a base model before its weights are read."""

    path: Path
    config: Any
    tokenizer_file: Path
    pad_token_id: int
    mask_token_id: int | None
    max_length: int
    """Tokens its positions allow, special tokens included."""


def open_base(path: Path) -> Base:
    """Read config and tokenizer. Raises `TrainingFailed` (`base_model`) naming what is missing."""
    from transformers import AutoConfig

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (path / name).is_file():
            raise TrainingFailed(
                "base_model",
                f"base model {path.name!r} has no {name}; it needs config.json, model.safetensors and "
                "tokenizer.json: save it again with safetensors and a fast tokenizer",
                param="model",
            )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        message = f"config.json of {path.name!r} is not usable: {error}"
        raise TrainingFailed("base_model", message, param="model") from error
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    limit = int(getattr(config, "max_position_embeddings", None) or 512)
    limit -= pad + 1 if config.model_type in _OFFSET_POSITIONS else 0
    settings = path / "tokenizer_config.json"
    stated = json.loads(settings.read_text()).get("model_max_length") if settings.is_file() else None
    tokenizer_file = path / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    masks = (tokenizer.token_to_id(name) for name in ("[MASK]", "<mask>"))
    mask = next((i for i in masks if i is not None), None)
    return Base(path, config, tokenizer_file, pad, mask, min(limit, int(stated or limit)))


def attention_kernel(config: Any) -> str:
    """torch's fused attention (`sdpa`) where the architecture has it, else `eager`."""
    from transformers import AutoModel

    found: Any = AutoModel._model_mapping.get(type(config), None)
    architecture = found[0] if isinstance(found, tuple) else found
    return "sdpa" if getattr(architecture, "_supports_sdpa", False) else "eager"


class TaskModel(nn.Module):
    """Encoder, dropout, linear head. `forward(input_ids, attention_mask)` [rows, sequence] int64 -> logits
    float32.

    Pooled: the mean of the token vectors, logits [rows, labels]; else one vector a token, logits [rows, sequence,
    labels].
    """

    def __init__(self, encoder: nn.Module, labels: int, *, pooled: bool) -> None:
        super().__init__()
        config = cast(Any, encoder.config)
        self.encoder_name: str = cast(str, getattr(encoder, "base_model_prefix", "")) or "encoder"
        self.add_module(self.encoder_name, encoder)
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.1))
        self.classifier = nn.Linear(config.hidden_size, labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)
        self.pooled = pooled

    @property
    def encoder(self) -> nn.Module:
        return self.get_submodule(self.encoder_name)

    def replace_encoder(self, encoder: nn.Module) -> None:
        """Put another module (one with adapters, say) in the encoder's place."""
        self.add_module(self.encoder_name, encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooled:
            hidden = mean_pooled(hidden, attention_mask)
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits.float()


def mean_pooled(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Token vectors [rows, sequence, size] -> the mean over the real tokens (Reimers and Gurevych 2019, section 3)."""
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def build(base: Base, labels: int, *, pooled: bool, attention: str | None = None) -> TaskModel:
    """The base model's weights under a fresh head. Raises `TrainingFailed` when they do not fit."""
    return TaskModel(load_encoder(base, attention), labels, pooled=pooled)


def load_encoder(base: Base, attention: str | None = None) -> nn.Module:
    """The base model's weights without any head. Raises `TrainingFailed` when they do not fit."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = copy.deepcopy(base.config)
    for name in _ATTENTION_DROPOUT & vars(config).keys():
        setattr(config, name, 0.0)
    options: dict[str, Any] = {
        "config": config,
        "dtype": torch.float32,
        "attn_implementation": attention or attention_kernel(config),
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    try:
        try:
            # A pooler would only follow the first token, and get no gradient.
            encoder: nn.Module = AutoModel.from_pretrained(base.path, add_pooling_layer=False, **options)
        except TypeError:  # this architecture has none
            encoder = AutoModel.from_pretrained(base.path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        message = f"the weights of {base.path.name!r} could not be loaded: {error}"
        raise TrainingFailed("base_model", message, param="model") from error
    return encoder
