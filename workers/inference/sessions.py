"""Loaded versions within a memory budget, least recently used out first, pinned ones last.

Where an artifact lies is asked of the injected `locate`. A version is loaded before another leaves for it.

Every load verifies every byte against the digest on the version's row. A version that cannot be loaded fails
its own requests; the failure is remembered for a moment, so that a flood of them does not hash 100 MB each.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from app.contracts.manifest import FUSED_NAME, MODEL_NAME, Serving
from app.contracts.providers import Provider, ProviderSetting
from app.core.logging import get_logger
from app.core.metrics import InferenceMetrics
from model_store.verify import verify_folder
from workers.codecs.text import TextCodec
from workers.inference import providers
from workers.inference.graph import Graph
from workers.inference.providers import choice
from workers.inference.runtime import Runtime
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
    provider: Provider
    bytes: int
    """What it takes in memory, estimated."""


def load(version_id: str, folder: Path, digest: str, setting: ProviderSetting, remembered: Path) -> LoadedVersion:
    """Verify an artifact and make it ready. Raises what verification, the tokenizer or the runtime raise.

    `remembered` is the file in which this host keeps the providers that `auto` measured.
    """
    manifest = verify_folder(folder, digest)
    serving = manifest.serving
    codec = TextCodec(folder / "tokenizer.json", max_length=serving.max_length, pad_token_id=serving.pad_token_id)
    fused = (folder / FUSED_NAME).read_bytes() if FUSED_NAME in manifest.files else None
    graph = Graph((folder / MODEL_NAME).read_bytes(), serving.inputs, serving.outputs[0], fused)
    if setting == "auto":
        provider, runtime = choice.choose(
            graph,
            vocabulary=codec.vocabulary,
            remembered=remembered,
            vectors=serving.task == "sentence-embedding",
        )
    else:
        provider, runtime = setting, providers.load(setting, graph)
    return LoadedVersion(
        version_id=version_id,
        serving=serving,
        codec=codec,
        runtime=runtime,
        prepare=TASKS[serving.task],
        provider=provider,
        bytes=providers.memory(provider, graph.size),
    )


class Sessions:
    """The cache, for all threads; versions are loaded one at a time."""

    def __init__(
        self, locate: Locate, *, budget: int, provider: ProviderSetting, remembered: Path, metrics: InferenceMetrics
    ) -> None:
        """`budget` is in bytes; one version is kept though it alone be larger."""
        self._locate, self._budget, self._metrics = locate, budget, metrics
        self._provider, self._remembered = provider, remembered
        self.max_batch_size: Mapping[str, int] = {}
        """Version id -> most rows in a batch, where somebody said so."""
        self._pinned: frozenset[str] = frozenset()
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
            version = load(version_id, folder, digest, self._provider, self._remembered)
        except Exception as exc:  # whatever is wrong with a version is its own requests' answer
            reason = f"version {version_id} cannot be loaded: {exc}"
            self._failures = {k: v for k, v in self._failures.items() if v[0] > started}
            self._failures[version_id] = (time.monotonic() + REMEMBER_FAILURE, reason)
            log.error("version_load_failed", version_id=version_id, reason=str(exc), kind=type(exc).__name__)
            raise ModelLoadFailed(reason) from exc
        seconds = time.monotonic() - started
        with self._lock:
            self._versions[version_id] = version
            self._make_room(version_id)
        self._metrics.load_seconds.observe(seconds)
        log.info("version_loaded", version_id=version_id, seconds=round(seconds, 3), provider=version.provider)
        return version

    def pin(self, version_ids: frozenset[str]) -> list[str]:
        """These stay in memory before all others; returns those that are not in it yet."""
        with self._lock:
            self._pinned = version_ids
            return [version_id for version_id in version_ids if version_id not in self._versions]

    def unload(self, version_id: str) -> bool:
        """Forget a version now; False when it was not in memory."""
        with self._lock:
            gone = self._versions.pop(version_id, None)
            self._count()
        return gone is not None

    def bytes(self) -> int:
        """What all loaded versions take, estimated."""
        return sum(version.bytes for version in self._versions.values())

    def room(self) -> bool:
        """Whether one more version of the usual size fits beside those that are pinned."""
        with self._lock:
            sizes = [version.bytes for version in self._versions.values()]
            kept = sum(v.bytes for version_id, v in self._versions.items() if version_id in self._pinned)
            return kept + (sum(sizes) // len(sizes) if sizes else 0) <= self._budget

    def _make_room(self, newest: str) -> None:
        """Under the lock. The newest stays, pinned ones go only when there are no others."""
        while self.bytes() > self._budget and len(self._versions) > 1:
            others = [version_id for version_id in self._versions if version_id != newest]
            gone = next((o for o in others if o not in self._pinned), others[0])
            del self._versions[gone]
            log.info("version_unloaded", version_id=gone, pinned=gone in self._pinned)
        self._count()

    def _count(self) -> None:
        self._metrics.loaded.set(len(self._versions))
        self._metrics.loaded_bytes.set(self.bytes())
