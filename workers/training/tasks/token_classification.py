"""Token classification: one IOB2 tag a word, read off the word's first piece; long sentences become windows.

Evaluation puts the windows of a sentence together again before it counts entities.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.codecs.text import TextCodec, Window
from workers.training.batching import Feature
from workers.training.data import Example
from workers.training.losses import IGNORED, CrossEntropy, Loss
from workers.training.metrics import entity_scores
from workers.training.recipe import TaskDefaults
from workers.training.tasks.base import Bools, Floats, Prepared, Task, same_argmax


class TokenClassification(Task):
    """Rows carry `tokens` and `ner_tags`, one tag a token. Targets are (word, position, tag) triples."""

    pooled = False
    defaults = TaskDefaults(rate=1.5)

    def text(self, example: Example) -> str:
        return " ".join(example.values["tokens"])

    def row_labels(self, example: Example) -> list[str]:
        return sorted({tag[2:] for tag in example.values["ner_tags"] if tag != "O"})

    def vocabulary(self, names: Sequence[str]) -> list[str]:
        """`O`, then `B-` and `I-` of every type, even if the data never continue one."""
        if not names:
            raise ValueError("every tag is 'O'; at least one entity type is needed: add rows with B-/I- tags")
        return ["O", *(f"{prefix}-{name}" for name in names for prefix in "BI")]

    def features(self, examples: Sequence[Example], codec: TextCodec) -> list[list[Feature]]:
        index = {label: i for i, label in enumerate(self.labels)}

        def feature(window: Window, tags: list[str]) -> Feature:
            return Feature(window.ids, [(word, at, index[tags[word]]) for word, at in window.first_piece])

        return [[feature(w, e.values["ner_tags"]) for w in codec.encode_words(e.values["tokens"])] for e in examples]

    def collate(self, features: Sequence[Feature]) -> Tensor:
        targets = np.full((len(features), max(len(f.ids) for f in features)), IGNORED, dtype=np.int64)
        for row, feature in enumerate(features):
            for _, position, tag in feature.target:
                targets[row, position] = tag
        return torch.from_numpy(targets)

    def criterion(self, features: Sequence[Feature], *, balanced: bool, smoothing: float) -> Loss:
        tags = [tag for f in features for _, _, tag in f.target]
        counts = np.bincount(tags, minlength=len(self.labels)).clip(1)
        weights = torch.from_numpy(len(tags) / (len(counts) * counts)).float()
        return CrossEntropy(weights if balanced else None, smoothing)

    def metrics(self, split: Prepared, logits: Sequence[Sequence[Floats]]) -> tuple[dict[str, float], dict[str, Any]]:
        gold = [example.values["ner_tags"] for example in split.examples]
        predicted = [["O"] * len(tags) for tags in gold]
        for tags, parts, scores in zip(predicted, split.features, logits, strict=True):
            for feature, values in zip(parts, scores, strict=True):
                best = values.argmax(-1)
                for word, position, _ in feature.target:
                    tags[word] = self.labels[best[position]]
        return entity_scores(gold, predicted)

    def baseline(self, examples: Sequence[Example], train: Sequence[Example]) -> dict[str, float]:
        """Always the commonest tag: no entity, but most tokens right."""
        commonest = Counter(tag for e in train for tag in e.values["ner_tags"]).most_common(1)[0][0]
        tags = [tag for e in examples for tag in e.values["ner_tags"]]
        return {"majority_accuracy": tags.count(commonest) / len(tags)}

    def same_decision(self, a: Floats, b: Floats, tolerance: float) -> Bools:
        return same_argmax(a, b, tolerance)
