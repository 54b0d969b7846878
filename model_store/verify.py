"""Is this folder what its digest says? Checked on every load, of artifacts and checkpoints. Knows no task."""

import hashlib
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from app.contracts.manifest import MANIFEST_NAME, FileEntry, Manifest, Sealed
from app.core.errors import ModelwrightError

_MAX_MANIFEST_BYTES = 4 << 20
S = TypeVar("S", bound=Sealed)


class ArtifactCorrupt(ModelwrightError):
    """The bytes on disk are not those that were published."""

    default_code = "artifact_corrupt"


def verify_folder(folder: Path, digest: str) -> Manifest:
    """The manifest of an artifact, once it and every file it names match `digest` (SHA-256, hex).

    Files that the manifest does not name are ignored. Raises `ArtifactCorrupt` with the file and both hashes.
    """
    return verify(folder, Manifest, digest)


def verify(folder: Path, kind: type[S], digest: str | None = None) -> S:
    """As `verify_folder`, for any sealed manifest; without a `digest`, against the one that it carries itself."""
    manifest = _manifest(folder, kind)
    expected = digest or manifest.digest
    for found, what in ((manifest.digest, "says"), (manifest.compute_digest(), "hashes to")):
        if found != expected:
            raise ArtifactCorrupt(
                f"{MANIFEST_NAME} {what} {found or 'nothing'} where {expected} was sealed: "
                "publish the version again or restore the file"
            )
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    return manifest


def _manifest(folder: Path, kind: type[S]) -> S:
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(data) > _MAX_MANIFEST_BYTES:
            raise ArtifactCorrupt(f"{MANIFEST_NAME} is over {_MAX_MANIFEST_BYTES} bytes")
        return kind.model_validate_json(data)
    except OSError as exc:
        raise ArtifactCorrupt(f"{MANIFEST_NAME} cannot be read: {exc.strerror}") from exc
    except ValidationError as exc:
        raise ArtifactCorrupt(f"{MANIFEST_NAME} is not a manifest: {exc.error_count()} errors") from exc


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactCorrupt(f"{name!r} leads out of the artifact's folder")
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise ArtifactCorrupt(f"{name} cannot be read: {exc.strerror}") from exc
    if found != entry.sha256:
        raise ArtifactCorrupt(
            f"{name} ({path.stat().st_size} bytes) hashes to {found}, the manifest says {entry.sha256} "
            f"({entry.bytes} bytes): publish the version again or restore the file"
        )
