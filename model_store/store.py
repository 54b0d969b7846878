"""The folder store: files and artifacts by server-made keys. Knows no table and never sees a caller's path.

Every write goes to `tmp/`, is fsynced, then renamed: a reader sees a whole file or none. Artifacts lie under
`artifacts/<job>/<fence>/` with the manifest moved in last; they become visible only through the row that names
them. An S3 store will stand beside this class behind the same methods.
"""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from app.contracts.manifest import MANIFEST_NAME, Manifest
from app.core.errors import FileRejected, NotFound
from model_store.verify import verify_folder

_KEY = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_.-]*[A-Za-z0-9_-])*")
_CHUNK = 1 << 20


class Readable(Protocol):
    """Anything bytes can be read from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Entry:
    """One thing under a prefix."""

    key: str
    modified: float
    """Unix seconds, by the clock of the host that wrote it."""


@dataclass(frozen=True)
class Stored:
    """What was written."""

    bytes: int
    sha256: str


class Store:
    """A folder, possibly on a shared volume."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tmp").mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where `key` lies. Keys are made by the server; anything else is a bug, so it raises `ValueError`."""
        if not _KEY.fullmatch(key) or ".." in key:
            raise ValueError(f"not a store key: {key!r}")
        return self.root / key

    @contextmanager
    def _staged(self, key: str) -> Iterator[Path]:
        """A path in `tmp/` that becomes `key` when the block ends, and vanishes when it raises."""
        staged, target = self.root / "tmp" / uuid.uuid4().hex, self.path(key)
        try:
            yield staged
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.rename(target)
            _fsync(target.parent)
        finally:
            if staged.is_dir():
                shutil.rmtree(staged, ignore_errors=True)
            else:
                staged.unlink(missing_ok=True)

    def put(self, key: str, source: Readable, limit: int) -> Stored:
        """Copy `source` to `key`. Raises `FileRejected` past `limit` bytes, leaving nothing behind."""
        digest, size = hashlib.sha256(), 0
        with self._staged(key) as staged, staged.open("wb") as out:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise FileRejected(
                        f"the file is larger than {limit:,} bytes: split it, or raise MODELWRIGHT_MAX_UPLOAD_BYTES",
                        code="file_too_large",
                        param="file",
                    )
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        return Stored(size, digest.hexdigest())

    def put_all(self, key: str, parts: list[str], limit: int, md5: str | None = None) -> Stored:
        """Join the files at `parts`, in order, into `key`. Raises `FileRejected` when they do not hash to `md5`."""
        with _Joined([self.path(part) for part in parts]) as source:
            stored = self.put(key, source, limit)
        if md5 is not None and (found := source.md5.hexdigest()) != md5.lower():
            self.delete(key)
            raise FileRejected(f"the parts hash to md5 {found}, not {md5}: send them again", param="md5")
        return stored

    def open(self, key: str) -> BinaryIO:
        """The bytes at `key`. Raises `NotFound` when they are gone."""
        try:
            return self.path(key).open("rb")
        except FileNotFoundError as exc:
            raise NotFound(f"the stored bytes of {key} are gone", code="content_missing") from exc

    def delete(self, key: str) -> None:
        """Remove a file or folder; nothing happens when there is none."""
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def entries(self, prefix: str) -> list[Entry]:
        """Files and folders right under `prefix`; those that are no keys were not put there by us."""
        folder = self.path(prefix)
        if not folder.is_dir():
            return []
        found = []
        with os.scandir(folder) as scan:
            for entry in scan:
                key = f"{prefix}/{entry.name}"
                with suppress(FileNotFoundError):  # removed meanwhile
                    if _KEY.fullmatch(key):
                        found.append(Entry(key, entry.stat(follow_symlinks=False).st_mtime))
        return found

    def delete_empty(self, key: str) -> None:
        """Remove a folder in which nothing lies any more."""
        with suppress(OSError):
            self.path(key).rmdir()

    def publish(self, key: str, folder: Path) -> Manifest:
        """Copy a sealed artifact to `key` and verify the copy; the manifest moves in last."""
        manifest = Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
        target = self.path(key)
        target.mkdir(parents=True, exist_ok=True)
        for name in [*manifest.files, MANIFEST_NAME]:
            with (folder / name).open("rb") as source:
                self.put(f"{key}/{name}", source, limit=1 << 62)
        return verify_folder(target, manifest.digest)


class _Joined:
    """Several files read as one stream; `md5` is the sum of what was read."""

    def __init__(self, paths: list[Path]) -> None:
        self._left = list(paths)
        self._open: BinaryIO | None = None
        self.md5 = hashlib.md5(usedforsecurity=False)  # the checksum OpenAI's clients send

    def __enter__(self) -> "_Joined":
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._open.close()

    def read(self, size: int) -> bytes:
        while True:
            if self._open is None:
                if not self._left:
                    return b""
                self._open = self._left.pop(0).open("rb")
            if data := self._open.read(size):
                self.md5.update(data)
                return data
            self._open.close()
            self._open = None


def _fsync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
