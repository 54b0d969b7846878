"""The registry as callers see it: references to versions, lists, aliases, deletion."""

from dataclasses import dataclass
from threading import Lock
from time import monotonic

from app.contracts.catalogue import CATALOGUE
from app.contracts.manifest import Serving
from app.core.errors import InvalidRequest, NotFound
from app.core.settings import Settings
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import AliasRow, ModelRow, VersionRow
from app.services.checkpoints import CheckpointService

# An alias moved on another gateway is seen here after at most this long.
_CACHE_SECONDS = 2.0


@dataclass(frozen=True)
class ServableVersion:
    """What a prediction needs to know of a version."""

    id: str
    name: str
    """`support-intents:3`"""
    serving: Serving


class ModelService:
    def __init__(self, database: Database, checkpoints: CheckpointService, settings: Settings) -> None:
        self._database, self._checkpoints, self._settings = database, checkpoints, settings
        self._cache: dict[str, tuple[float, ServableVersion]] = {}
        self._lock = Lock()

    # --- for predictions ---

    def cached(self, reference: str) -> ServableVersion | None:
        """A version resolved less than two seconds ago; never blocks."""
        found = self._cache.get(reference)
        return found[1] if found and found[0] > monotonic() else None

    def resolve(self, reference: str) -> ServableVersion:
        """Raises `NotFound` for a name, alias, number or id that no ready version has."""
        row = self.version(reference)
        found = ServableVersion(row.id, row.label, Serving.model_validate(row.serving))
        with self._lock:
            if len(self._cache) > 4096:
                self._cache.clear()
            self._cache[reference] = (monotonic() + _CACHE_SECONDS, found)
        return found

    def version(self, reference: str) -> VersionRow:
        with self._database.unit_of_work() as session:
            row = ModelRepository(session).resolve(reference)
        if row is None:
            if self.is_base(reference):
                raise InvalidRequest(
                    f"{reference!r} is a base model and answers nothing by itself: fine-tune it with "
                    "POST /v1/fine_tuning/jobs and use the job's fine_tuned_model",
                    code="model_not_servable",
                    param="model",
                )
            self._checkpoints.prepare(reference)
            raise _unknown(reference)
        return row

    # --- for /v1/models ---

    def is_base(self, name: str) -> bool:
        """Whether the trainer may start from `name`, judged from catalogue and settings, never from the network."""
        if name in CATALOGUE:
            return True
        folder = self._settings.models
        if folder is not None and "/" not in name and not name.startswith("."):
            return (folder / name / "config.json").is_file()
        return self._settings.hub and name.count("/") == 1

    def base_names(self) -> list[str]:
        folder = self._settings.models
        local = sorted(p.parent.name for p in folder.glob("*/config.json")) if folder else []
        return [*CATALOGUE, *local]

    def everything(self) -> tuple[list[ModelRow], list[VersionRow]]:
        """All models and all live versions."""
        with self._database.unit_of_work() as session:
            versions = ModelRepository(session).all_versions()
        models = list({v.model.id: v.model for v in versions}.values())
        return models, versions

    def model(self, name: str) -> ModelRow:
        with self._database.unit_of_work() as session:
            row = ModelRepository(session).by_name(name)
        if row is None:
            raise _unknown(name)
        return row

    def versions(self, name: str, *, after: str | None, limit: int) -> tuple[list[VersionRow], bool]:
        model = self.model(name)
        with self._database.unit_of_work() as session:
            return ModelRepository(session).versions(model.id, after=after, limit=limit)

    def delete(self, reference: str) -> None:
        """Delete a version (`name:n` or an `ft:` id) or, given a bare name, the model's every version.

        Raises `InvalidRequest` while an alias points at one of them.
        """
        with self._database.unit_of_work() as session:
            models = ModelRepository(session)
            if ":" in reference or "@" in reference:
                if "@" in reference:
                    raise InvalidRequest(
                        f"{reference!r} names an alias: delete the version as name:number", param="model"
                    )
                row = models.resolve(reference)
                doomed = [row] if row else []
            else:
                model = models.by_name(reference)
                doomed = models.versions(model.id, after=None, limit=1_000_000)[0] if model else []
            if not doomed:
                raise _unknown(reference)
            for row in doomed:
                if aliases := models.aliases_of(row.id):
                    raise InvalidRequest(
                        f"{row.label} has the alias {', '.join(aliases)}: move or delete the alias first",
                        code="version_aliased",
                        param="model",
                    )
            for row in doomed:
                models.delete_version(row)
        with self._lock:
            self._cache.clear()

    # --- aliases ---

    def aliases(self, name: str) -> list[AliasRow]:
        model = self.model(name)
        with self._database.unit_of_work() as session:
            return ModelRepository(session).aliases(model.id)

    def set_alias(self, name: str, alias: str, number: int) -> VersionRow:
        with self._database.unit_of_work() as session:
            models = ModelRepository(session)
            row = models.resolve(f"{name}:{number}")
            if row is None:
                raise _unknown(f"{name}:{number}")
            models.set_alias(row.model_id, alias, row.id)
        with self._lock:
            self._cache.clear()
        return row

    def drop_alias(self, name: str, alias: str) -> None:
        model = self.model(name)
        with self._database.unit_of_work() as session:
            if not ModelRepository(session).drop_alias(model.id, alias):
                raise NotFound(f"{name} has no alias {alias!r}", param="alias")
        with self._lock:
            self._cache.clear()


def _unknown(reference: str) -> NotFound:
    return NotFound(
        f"no model {reference[:256]!r}: GET /v1/models lists the names and ids that answer",
        code="model_not_found",
        param="model",
    )
