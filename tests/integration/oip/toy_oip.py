"""Published toys, and what the tests of `/v2` send and read."""

from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from httpx2 import Response
from sqlalchemy import update

from app.contracts.manifest import MANIFEST_NAME, Manifest
from app.registry.session import Database
from app.registry.tables import VersionRow
from tests import toy_artifact
from tests.integration.test_models_api import publish

LABELS = ["a", "b", "c"]


class Bearer:
    """A plugin of the stock client, its own place for a key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = f"Bearer {self._key}"


class Toys:
    """Published toy versions and the worker that serves them."""

    def __init__(self, database: Database, root: Path) -> None:
        self._database, self._root = database, root
        self.folders: dict[str, tuple[Path, str]] = {}

    def publish(self, name: str, **options: Any) -> VersionRow:
        row = publish(self._database, name)
        folder = self._root / row.id
        digest = toy_artifact.build(folder, **options)
        serving = Manifest.model_validate_json((folder / MANIFEST_NAME).read_text()).serving
        with self._database.unit_of_work() as session:
            values = {"serving": serving.model_dump(), "task": serving.task}
            session.execute(update(VersionRow).where(VersionRow.id == row.id).values(**values))
        self.folders[row.id] = (folder, digest)
        return row


def texts(*given: str, binary: bool = True, module: Any = triton) -> list[Any]:
    tensor = module.InferInput("text", [len(given)], "BYTES")
    tensor.set_data_from_numpy(np.array(given, dtype=np.object_), binary_data=binary)
    return [tensor]


def ids(rows: list[list[int]], width: int) -> list[Any]:
    padded = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=np.int64)
    found = []
    for name, values in (("input_ids", padded), ("attention_mask", mask)):
        found.append(triton.InferInput(name, list(values.shape), "INT64"))
        found[-1].set_data_from_numpy(values)
    return found


def output(result: Any, name: str) -> list[Any]:
    values: list[Any] = result.as_numpy(name).tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def said(answer: Response, status: int) -> str:
    """The message of the protocol's error body."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert answer.headers["x-request-id"]
    found: str = answer.json()["error"]
    return found


def infer_body(*given: str, **members: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [len(given)], "datatype": "BYTES", "data": list(given)}
    return {"inputs": [tensor], **members}
