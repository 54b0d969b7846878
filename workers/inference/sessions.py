"""Loaded versions, least recently used out first. Where an artifact lies is asked of the injected `locate`.

Every load verifies every byte against the digest on the version's row. A version that cannot be loaded fails
its own requests; the failure is remembered for a moment, so that a flood of them does not hash 100 MB each.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.contracts.manifest import Serving
from app.core.logging import get_logger
from app.core.metrics import InferenceMetrics
from model_store.verify import verify_folder
from workers.codecs.text import TextCodec
from workers.inference.runtime import OnnxRuntime, Provider, Runtime
from workers.inference.tasks import TASKS
from workers.inference.tasks.base import Prepare

Locate = Callable[[str], tuple[Path, str]]
"""Version id -> (its artifact's folder, the digest on its row). May raise anything."""

REMEMBER_FAILURE = 5.0
"""Seconds until a version that failed to load is tried again."""

log = get_logger(__name__)


class ModelLoadFailed(Exception):
    """The version cannot be loaded; the message says why."""


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """All that answers a request for one version. Stays usable after it left the cache."""

    version_id: str
    serving: Serving
    codec: TextCodec
    runtime: Runtime
    prepare: Prepare


def load(version_id: str, folder: Path, digest: str, provider: Provider) -> LoadedVersion:
    """Verify an artifact and make it ready. Raises what verification, the tokenizer or the runtime raise."""
    serving = verify_folder(folder, digest).serving
    return LoadedVersion(
        version_id=version_id,
        serving=serving,
        codec=TextCodec(folder / "tokenizer.json", max_length=serving.max_length, pad_token_id=serving.pad_token_id),
        runtime=OnnxRuntime(
            (folder / "model.onnx").read_bytes(),
            inputs=serving.inputs,
            output=serving.outputs[0],
            provider=provider,
        ),
        prepare=TASKS[serving.task],
    )


class Sessions:
    """The cache, for all threads; versions are loaded one at a time."""

    def __init__(self, locate: Locate, *, limit: int, provider: Provider, metrics: InferenceMetrics) -> None:
        self._locate, self._limit, self._provider, self._metrics = locate, limit, provider, metrics
        self._versions: OrderedDict[str, LoadedVersion] = OrderedDict()
        self._failures: dict[str, tuple[float, str]] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def loaded(self, version_id: str) -> LoadedVersion | None:
        """The version when it is in memory; it becomes the most recently used."""
        with self._lock:
            if version := self._versions.get(version_id):
                self._versions.move_to_end(version_id)
            return version

    def get(self, version_id: str) -> LoadedVersion:
        """The version, loaded when need be. Raises `ModelLoadFailed`."""
        with self._loading:
            return self.loaded(version_id) or self._load(version_id)

    def _load(self, version_id: str) -> LoadedVersion:
        until, reason = self._failures.get(version_id, (0.0, ""))
        if time.monotonic() < until:
            raise ModelLoadFailed(reason)
        started = time.monotonic()
        try:
            folder, digest = self._locate(version_id)
            version = load(version_id, folder, digest, self._provider)
        except Exception as exc:  # whatever is wrong with a version is its own requests' answer
            reason = f"version {version_id} cannot be loaded: {exc}"
            self._failures = {k: v for k, v in self._failures.items() if v[0] > started}
            self._failures[version_id] = (time.monotonic() + REMEMBER_FAILURE, reason)
            log.error("version_load_failed", version_id=version_id, reason=str(exc), kind=type(exc).__name__)
            raise ModelLoadFailed(reason) from exc
        seconds = time.monotonic() - started
        with self._lock:
            self._versions[version_id] = version
            while len(self._versions) > self._limit:
                gone, _ = self._versions.popitem(last=False)
                log.info("version_unloaded", version_id=gone)
            self._metrics.loaded.set(len(self._versions))
        self._metrics.load_seconds.observe(seconds)
        log.info("version_loaded", version_id=version_id, seconds=round(seconds, 3))
        return version
