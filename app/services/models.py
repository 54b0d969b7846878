"""The registry as callers see it: references to versions, lists, deletion. Aliases are changed in `aliases.py`."""

from dataclasses import dataclass, replace

from app.contracts.catalogue import CATALOGUE
from app.contracts.manifest import Serving
from app.core.errors import InvalidRequest, NotFound
from app.core.remembered import Remembered
from app.core.settings import Settings
from app.registry.aliases import AliasRepository
from app.registry.models import Found, ModelRepository
from app.registry.pins import PinRepository
from app.registry.session import Database
from app.registry.tables import ModelRow, VersionRow
from app.services.checkpoints import CheckpointService
from app.services.exports import ExportService
from app.services.traffic import Draws, Route

# An alias moved on another gateway is seen here after at most this long.
_CACHE_SECONDS = 2.0
# From then on it is looked up again, beside the calls.
_FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class ServableVersion:
    """What a prediction needs to know of a version."""

    id: str
    name: str
    """`support-intents:3`"""
    serving: Serving
    shadow: "ServableVersion | None" = None
    """Gets a copy of what this one answers under the name that was asked for."""


class ModelService:
    def __init__(
        self, database: Database, checkpoints: CheckpointService, exports: ExportService, settings: Settings
    ) -> None:
        self._database, self._checkpoints, self._exports, self._settings = database, checkpoints, exports, settings
        self._routes: Remembered[Route[ServableVersion]] = Remembered(
            lambda reference, _: self._route(reference), fresh=_FRESH_SECONDS, keep=_CACHE_SECONDS
        )
        self._draws = Draws()

    # --- for predictions ---

    def cached(self, reference: str, sticky: str | None = None) -> ServableVersion | None:
        """A version for one request, by what was resolved less than two seconds ago; never blocks."""
        route = self._routes.get(reference)
        return route.choose(sticky, self._draws) if route else None

    def resolve(self, reference: str, sticky: str | None = None) -> ServableVersion:
        """A version for one request. Raises `NotFound` for a name, alias, number or id that no ready version has."""
        return self._routes.look(reference, lambda: self._route(reference)).choose(sticky, self._draws)

    def _route(self, reference: str) -> Route[ServableVersion]:
        route = _route(reference, *self._find(reference))
        self._refuse_unloaded(route)
        return route

    def _refuse_unloaded(self, route: Route[ServableVersion]) -> None:
        """What was unloaded on purpose answers nothing, under any name, nor does an alias that sends it a share."""
        with self._database.unit_of_work() as session:
            unloaded = PinRepository(session).unloaded()
        for version in route.targets:
            if version.id in unloaded:
                raise InvalidRequest(
                    f"{version.name} is unloaded: load it (POST /v2/repository/models/{version.name}/load) or name "
                    "another version",
                    code="version_unloaded",
                    param="model",
                )

    def forget(self) -> None:
        """A name may mean something else now: every one is looked up anew."""
        self._routes.forget()

    def version(self, reference: str) -> VersionRow:
        return self._find(reference)[0].version

    def _find(self, reference: str) -> tuple[Found, dict[str, VersionRow]]:
        """What `reference` means, and the further versions that its alias names, by id."""
        with self._database.unit_of_work() as session:
            found = ModelRepository(session).find(reference)
            alias = found.alias if found else None
            ids = [*(alias.weights or ()), alias.shadow_id] if alias else []
            others = AliasRepository(session).versions(ids)
        if found is None:
            if self.is_base(reference):
                if "/" in reference:  # or every key that may predict could have the trainer fetch whatever it names
                    raise InvalidRequest(
                        f"{reference!r} is a base model of the hub, which answers once it is fine-tuned (POST "
                        "/v1/fine_tuning/jobs); to use it as it is, put its files in a folder under MODELWRIGHT_MODELS",
                        code="model_not_servable",
                        param="model",
                    )
                return Found(self._exports.of_base(reference)), {}
            self._checkpoints.prepare(reference)
            raise unknown_model(reference)
        return found, others

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
            raise unknown_model(name)
        return row

    def versions(self, name: str, *, after: str | None, limit: int) -> tuple[list[VersionRow], bool]:
        model = self.model(name)
        with self._database.unit_of_work() as session:
            return ModelRepository(session).versions(model.id, after=after, limit=limit)

    def delete(self, reference: str) -> None:
        """Delete a version (`name:n` or an `ft:` id) or, given a bare name, the model's every version.

        Raises `InvalidRequest` while an alias names one of them, also as a share or a shadow.
        """
        with self._database.unit_of_work() as session:
            models, aliases = ModelRepository(session), AliasRepository(session)
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
                raise unknown_model(reference)
            aliases.lock(doomed[0].model_id)
            for row in doomed:
                if named := aliases.naming(row.id):
                    raise InvalidRequest(
                        f"{row.label} has the alias {', '.join(named)}: move or delete the alias first",
                        code="version_aliased",
                        param="model",
                    )
            for row in doomed:
                models.delete_version(row)
        self.forget()


def _route(reference: str, found: Found, others: dict[str, VersionRow]) -> Route[ServableVersion]:
    alias = found.alias
    if alias is None:
        return Route(reference, (_servable(found.version),))
    shadow = _servable(others[alias.shadow_id]) if alias.shadow_id else None
    shares = alias.weights or {found.version.id: 1.0}
    rows = [others.get(i, found.version) for i, share in shares.items() if share > 0]
    # By number: when a new version's share grows, those it has stay with it.
    rows.sort(key=lambda row: row.number or 0)
    targets = [replace(_servable(row), shadow=shadow) for row in rows]
    return Route.split(f"{alias.model_id}@{alias.alias}", targets, [shares[row.id] for row in rows])


def _servable(row: VersionRow) -> ServableVersion:
    return ServableVersion(row.id, row.label, Serving.model_validate(row.serving))


def unknown_model(reference: str) -> NotFound:
    """Nothing has this name."""
    return NotFound(
        f"no model {reference[:256]!r}: GET /v1/models lists the names and ids that answer",
        code="model_not_found",
        param="model",
    )
