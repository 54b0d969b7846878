"""Real but tiny: a random two-layer BERT with its own tokenizer, and rows that it can learn in seconds.

Words are made up; the class of a word decides the label, so a model that learns anything reaches 100 %.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ANIMALS = ["dog", "cat", "horse", "bird"]
COLOURS = ["red", "green", "blue", "black"]
TOOLS = ["hammer", "saw", "drill", "wrench"]
CLASSES = {"animal": ANIMALS, "colour": COLOURS, "tool": TOOLS}
FILLERS = ["the", "a", "some", "is", "here", "and", "now", "very", "it", "was"]
PIECES = ["##s", "##er", "##ly", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *"abcdefghijklmnopqrstuvwxyz.,!?"]


def build_toy_base(folder: Path) -> Path:
    """A base model folder: BERT with 2 layers of width 32 and 64 positions. The same bytes every time."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *FILLERS, *(w for group in CLASSES.values() for w in group), *PIECES]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(special)
    # As in real files: settings of another program, which must not leak into ours.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64, "pad_token": "[PAD]"}))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.2,  # random words must differ enough for a tuner that leaves them frozen
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def text_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`{"text", "label"}`: one class word among fillers."""
    rng = random.Random(seed)
    return [_text_row(rng, label) for _, label in zip(range(count), _cycle(CLASSES), strict=False)]


def _cycle(items: Iterable[str]) -> Iterable[str]:
    kept = list(items)
    while True:
        yield from kept


def _text_row(rng: random.Random, label: str) -> dict[str, Any]:
    words = [rng.choice(FILLERS) for _ in range(rng.randint(1, 5))]
    words.insert(rng.randint(0, len(words)), rng.choice(CLASSES[label]))
    return {"text": " ".join(words), "label": label}


def multi_label_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`{"text", "labels"}`: none to all of the classes."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [name for name in CLASSES if rng.random() < 0.5]
        words = [rng.choice(FILLERS) for _ in range(2)] + [rng.choice(CLASSES[name]) for name in labels]
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "labels": labels})
    return rows


def tag_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`{"tokens", "ner_tags"}`: class words are entities, two in a row are one of two words."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(rng.randint(2, 6)):
            tokens.append(rng.choice(FILLERS))
            tags.append("O")
            if rng.random() < 0.5:
                name = rng.choice(list(CLASSES))
                for prefix in "BI"[: rng.randint(1, 2)]:
                    tokens.append(rng.choice(CLASSES[name]))
                    tags.append(f"{prefix}-{name}")
        rows.append({"tokens": tokens, "ner_tags": tags})
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """One row a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
