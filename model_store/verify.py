"""Is this folder the artifact that its digest names? Checked on every load. Knows no task and no runtime."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from app.contracts.manifest import MANIFEST_NAME, FileEntry, Manifest
from app.core.errors import ModelwrightError

_MAX_MANIFEST_BYTES = 4 << 20


class ArtifactCorrupt(ModelwrightError):
    """The bytes on disk are not those that were published."""

    default_code = "artifact_corrupt"


def verify_folder(folder: Path, digest: str) -> Manifest:
    """The manifest of `folder`, once it and every file it names match `digest` (SHA-256, hex).

    Files that the manifest does not name are ignored. Raises `ArtifactCorrupt` with the file and both hashes.
    """
    manifest = _manifest(folder)
    for found, what in ((manifest.digest, "says"), (manifest.compute_digest(), "hashes to")):
        if found != digest:
            raise ArtifactCorrupt(
                f"{MANIFEST_NAME} {what} {found or 'nothing'}, the version's row says {digest}: "
                "publish the version again or restore the file"
            )
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    return manifest


def _manifest(folder: Path) -> Manifest:
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        if len(data) > _MAX_MANIFEST_BYTES:
            raise ArtifactCorrupt(f"{MANIFEST_NAME} is over {_MAX_MANIFEST_BYTES} bytes")
        return Manifest.model_validate_json(data)
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
