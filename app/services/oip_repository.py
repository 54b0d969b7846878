"""The repository side of the Open Inference Protocol: what there is, in which state, and what it has answered.

A load or an unload is a wish in Postgres (`PinRow`), which every gateway and worker follows and a restart keeps.
"""

import re
import time
from dataclasses import dataclass

from app.core.dataplane import DataPlane
from app.core.errors import NotFound, Unavailable
from app.core.settings import Settings
from app.core.statistics import Counts, Statistics
from app.registry.models import ModelRepository
from app.registry.pins import PinRepository
from app.registry.session import Database
from app.registry.tables import VersionRow
from app.services.models import ModelService, ServableVersion

_NUMBERED = re.compile(r"[^:]+:([1-9][0-9]*)")


def reference(model: str, version: str | None) -> str:
    """`model` and its `/versions/{version}` as one reference. Raises `NotFound` where they contradict each other."""
    if version is None or (not model.startswith("ft:") and model.endswith(f":{version}")):
        return model
    if ":" in model or "@" in model:
        raise NotFound(
            f"{model[:256]!r} names one version already: leave out /versions/{version[:64]}", param="version"
        )
    return f"{model}:{version}"


def number(version: ServableVersion) -> str | None:
    """`3` of `support-intents:3`; None for an exported checkpoint or a base model."""
    found = _NUMBERED.fullmatch(version.name)
    return found[1] if found else None


@dataclass(frozen=True)
class Entry:
    """A version in the index."""

    name: str
    version: str
    loaded: bool


class OipRepositoryService:
    def __init__(
        self, database: Database, models: ModelService, plane: DataPlane, statistics: Statistics, settings: Settings
    ) -> None:
        self._database, self._models, self._plane = database, models, plane
        self._statistics, self._settings = statistics, settings

    def versions(self, model: str, version: ServableVersion) -> list[str]:
        """The numbers that `model` may be asked for: all of a bare name's, else its own."""
        if ":" in model or "@" in model:
            own = number(version)
            return [own] if own else []
        with self._database.unit_of_work() as session:
            models = ModelRepository(session)
            row = models.by_name(model)
            rows = models.versions(row.id, after=None, limit=1_000_000)[0] if row else []
        return [str(row.number) for row in reversed(rows)]

    async def require_worker(self) -> None:
        """Raises `Unavailable` when nobody would answer."""
        if not await self._plane.workers():
            raise Unavailable("no live inference worker: start one with `modelwright worker inference`")

    def index(self) -> list[Entry]:
        """All versions."""
        with self._database.unit_of_work() as session:
            rows, unloaded = ModelRepository(session).all_versions(), PinRepository(session).unloaded()
        return [Entry(row.model.name, str(row.number), row.id not in unloaded) for row in rows]

    def set_loaded(self, name: str, *, loaded: bool, max_batch_size: int | None = None) -> None:
        """Wish that the version which `name` stands for is kept in memory, or answers nothing."""
        row = self._models.version(name)
        with self._database.unit_of_work() as session:
            PinRepository(session).put(row.id, loaded=loaded, max_batch_size=max_batch_size)
        self._models.forget()

    def max_batch_size(self, version_id: str) -> int:
        """What a version's configuration says: as many rows as run together, or as many inputs as a call may have."""
        with self._database.unit_of_work() as session:
            return PinRepository(session).max_batch_size(version_id) or self._settings.max_inputs

    async def warm(self, version: ServableVersion, caller: str) -> None:
        """Wait until a worker has answered with it. Raises `Unavailable` that says why none did."""
        deadline = time.time() + self._settings.predict_timeout_ms / 1000
        reply = await self._plane.predict(version.id, ["load"], {}, deadline, caller=caller)
        if reply.error:
            raise Unavailable(f"{version.name}: {reply.message}", code=reply.error)

    def counted(self, name: str | None) -> list[VersionRow]:
        """The versions whose statistics are asked for: all, a bare name's, or one."""
        if name is not None and (":" in name or "@" in name):
            return [self._models.version(name)]
        with self._database.unit_of_work() as session:
            rows = ModelRepository(session).all_versions()
        if name is None:
            return rows
        own = [row for row in rows if row.model.name.lower() == name.lower()]
        return own or [self._models.version(name)]

    async def statistics(self, rows: list[VersionRow]) -> list[tuple[VersionRow, Counts]]:
        return list(zip(rows, await self._statistics.of([row.id for row in rows]), strict=True))
