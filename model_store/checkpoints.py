"""Writes a checkpoint so that it is whole or not there: staged, fsynced, hashed, sealed, renamed.

Knows folders and files; what is in them is `workers/training`'s. A folder `step-<n>` exists only complete.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.contracts.checkpoints import CheckpointManifest
from app.contracts.manifest import MANIFEST_NAME, FileEntry
from model_store.verify import verify


def write(root: Path, fill: Callable[[Path], None], step: int, **values: Any) -> tuple[Path, CheckpointManifest]:
    """Let `fill` write files into a folder, seal it as `root/step-<step>`; `values` are the manifest's other fields.

    Raises what `fill` raises and `OSError`, leaving nothing behind.
    """
    target, staged = root / f"step-{step:08d}", root / f".{uuid.uuid4().hex}"
    staged.mkdir(parents=True)
    try:
        fill(staged)
        files = {path.name: _entry(path) for path in sorted(staged.iterdir())}
        manifest = CheckpointManifest(step=step, files=files, **values).sealed()
        sealed = staged / MANIFEST_NAME
        sealed.write_text(manifest.model_dump_json(indent=2) + "\n")
        for path in (*(staged / name for name in files), sealed, staged):
            _fsync(path)
        staged.rename(target)
        _fsync(root)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target, manifest


def sealed_folders(root: Path) -> list[Path]:
    """The checkpoints under `root`, lowest step first."""
    return sorted(root.glob("step-*")) if root.is_dir() else []


def read(folder: Path, digest: str | None = None) -> CheckpointManifest:
    """The manifest, every file's hash checked. Raises `ArtifactCorrupt`."""
    return verify(folder, CheckpointManifest, digest)


def read_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a checkpoint that was verified a moment ago; nothing is hashed."""
    return CheckpointManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
