"""The manifest sealed into every artifact: what the files are, and how to serve them.

`digest` is the SHA-256 of the manifest's canonical JSON without `digest`; it covers every file's own SHA-256, so
one number (kept on the version's row) vouches for the whole artifact.
"""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from app.contracts.tasks import TaskName

MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
FUSED_NAME = "fused.onnx"
"""The graph once more, in fused operators and without the weights that `model.onnx` has; not every artifact has it."""
FUSED_OF = "model_sha256"
"""The metadata property in which it names its `model.onnx`."""


class FileEntry(BaseModel):
    sha256: str
    bytes: int


class Sealed(BaseModel):
    """A manifest that names every file beside it and carries its own digest."""

    model_config = ConfigDict(extra="forbid")  # a damaged key must not be taken for an absent one with a default

    files: dict[str, FileEntry]
    digest: str = ""

    def compute_digest(self) -> str:
        """SHA-256 (hex) of everything but `digest` itself."""
        body = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def sealed(self) -> Self:
        """A copy with its digest set."""
        return self.model_copy(update={"digest": self.compute_digest()})


class Serving(BaseModel):
    """What an inference worker must know beside the graph. Written by the training child."""

    task: TaskName
    labels: list[str]
    """Index in the logits -> label; for tagging, IOB2 tags."""
    multi_label: bool = False
    max_length: int
    """Tokens the graph accepts in a row, special tokens included."""
    inputs: list[str]
    """ONNX input names, all int64 [batch, sequence]."""
    outputs: list[str]
    """`["logits"]`: float32 [batch, labels] or [batch, sequence, labels]."""
    pad_token_id: int


class Manifest(Sealed):
    """One artifact."""

    format: int = 1
    serving: Serving
    info: dict[str, Any] = {}
    """Recipe, parity and library versions, for people and for reproduction."""
