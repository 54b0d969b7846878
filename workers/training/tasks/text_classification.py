"""Text classification: one label a text by softmax, or any number of labels by one sigmoid each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.codecs.text import TextCodec
from workers.training.batching import Feature
from workers.training.data import Example
from workers.training.losses import BinaryCrossEntropy, CrossEntropy, Loss
from workers.training.metrics import classification, majority_baseline, one_hot
from workers.training.recipe import TaskDefaults
from workers.training.tasks.base import Bools, Floats, Prepared, Task, same_argmax


class TextClassification(Task):
    """`multi_label` rows carry `labels`, the others one `label`. A multi-label score counts from 0.5 on."""

    pooled = True

    def __init__(self, *, multi_label: bool) -> None:
        super().__init__(multi_label=multi_label)
        self.defaults = TaskDefaults() if multi_label else TaskDefaults(label_smoothing=0.1, word_dropout=0.1)

    def text(self, example: Example) -> str:
        return str(example.values["text"])

    def row_labels(self, example: Example) -> list[str]:
        return list(example.values["labels"]) if self.multi_label else [example.values["label"]]

    def vocabulary(self, names: Sequence[str]) -> list[str]:
        fewest = 1 if self.multi_label else 2
        if len(names) < fewest:
            found = f"only the label {names[0]!r}" if names else "no label at all"
            raise ValueError(f"{found}; at least {fewest} different labels are needed: add rows of other labels")
        return list(names)

    def _gold(self, examples: Sequence[Example]) -> Bools:
        index = {label: i for i, label in enumerate(self.labels)}
        gold = np.zeros((len(examples), len(index)), dtype=np.bool_)
        for row, example in enumerate(examples):
            gold[row, [index[label] for label in self.row_labels(example)]] = True
        return gold

    def features(self, examples: Sequence[Example], codec: TextCodec) -> list[list[Feature]]:
        gold = self._gold(examples)
        rows = codec.encode([self.text(e) for e in examples])
        targets = gold.astype(np.float32) if self.multi_label else gold.argmax(1).tolist()
        return [[Feature(row.ids, target)] for row, target in zip(rows, targets, strict=True)]

    def collate(self, features: Sequence[Feature]) -> Tensor:
        if self.multi_label:
            return torch.from_numpy(np.stack([f.target for f in features]))
        return torch.tensor([f.target for f in features], dtype=torch.int64)

    def criterion(self, features: Sequence[Feature], *, balanced: bool, smoothing: float) -> Loss:
        if self.multi_label:
            positive = np.stack([f.target for f in features]).sum(0)
            weights = torch.from_numpy((len(features) - positive) / positive.clip(1)).float()
            return BinaryCrossEntropy(weights if balanced else None, smoothing)
        counts = np.bincount([f.target for f in features], minlength=len(self.labels)).clip(1)
        weights = torch.from_numpy(len(features) / (len(counts) * counts)).float()
        return CrossEntropy(weights if balanced else None, smoothing)

    def metrics(self, split: Prepared, logits: Sequence[Sequence[Floats]]) -> tuple[dict[str, float], dict[str, Any]]:
        scores = np.stack([parts[0] for parts in logits])
        predicted = scores >= 0 if self.multi_label else one_hot(scores.argmax(1), len(self.labels))
        return classification(self._gold(split.examples), predicted, self.labels)

    def baseline(self, examples: Sequence[Example], train: Sequence[Example]) -> dict[str, float]:
        return {"majority_accuracy": majority_baseline(self._gold(examples), self._gold(train))}

    def same_decision(self, a: Floats, b: Floats, tolerance: float) -> Bools:
        if not self.multi_label:
            return same_argmax(a, b, tolerance)
        alike: Bools = ((a >= 0) == (b >= 0)) | (np.abs(a) <= tolerance)
        return alike
