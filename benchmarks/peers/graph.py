"""The graph that every peer serves: texts in, labels out, on one thread. Runs in the peers' environments."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

BATCH, WAIT_SECONDS, WORKERS = 32, 0.005, 2
"""What every peer is given: the most inputs of a batch, the longest wait for them, and processes that compute."""
MAX_LENGTH = 128


class Classifier:
    """One session of one thread. Pads a batch to its longest text."""

    def __init__(self, folder: Path) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        config = json.loads((folder / "config.json").read_text())
        self._labels = [config["id2label"][str(n)] for n in range(len(config["id2label"]))]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_LENGTH)
        self._tokenizer.enable_padding(pad_id=config.get("pad_token_id") or 0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]

    def __call__(self, texts: Sequence[str]) -> list[str]:
        rows = self._tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [row.ids for row in rows],
            "attention_mask": [row.attention_mask for row in rows],
            "token_type_ids": [row.type_ids for row in rows],
        }
        feeds = {name: np.array(columns[name], dtype=np.int64) for name in self._inputs}
        (logits,) = self._session.run(None, feeds)
        return [self._labels[n] for n in logits.argmax(axis=-1)]
