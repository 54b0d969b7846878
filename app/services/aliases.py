"""Aliases: where they send requests, how they are moved and moved back, and who did it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from app.contracts.aliases import AliasSet
from app.core.creation import Creation
from app.core.errors import InvalidRequest, NotFound
from app.registry.aliases import AliasRepository, Target, stand_before
from app.registry.creations import CreationRepository
from app.registry.session import Database
from app.registry.tables import AliasChangeRow, AliasRow, ModelRow, VersionRow
from app.services.models import ModelService, unknown_model


@dataclass(frozen=True)
class Stand:
    """Where an alias sends its requests, by version numbers."""

    version: int | None
    """The one with the largest share; None: the alias was deleted."""
    weights: dict[int, float] | None
    shadow: int | None


@dataclass(frozen=True)
class Alias:
    """An alias as it stands."""

    model: str
    name: str
    stand: Stand
    updated_at: datetime


@dataclass(frozen=True)
class AliasChange:
    """One change of an alias, and where it stood from then on."""

    number: int
    action: str
    stand: Stand
    key_id: str | None
    created_at: datetime


class AliasService:
    def __init__(self, database: Database, models: ModelService) -> None:
        self._database, self._models = database, models

    def all(self, model: str) -> list[Alias]:
        found = self._models.model(model)
        with self._database.unit_of_work() as session:
            aliases = AliasRepository(session)
            return _seen(aliases, found, aliases.all(found.id))

    def set(self, model: str, alias: str, wanted: AliasSet, key_id: str) -> Alias:
        """Raises `NotFound` naming the version that the model does not have."""
        found = self._models.model(model)
        with self._database.unit_of_work() as session:
            aliases = AliasRepository(session)
            aliases.lock(found.id)
            target = _target(found, wanted, aliases)
            seen = _seen(aliases, found, [aliases.point(found.id, alias, target, action="set", key_id=key_id)])
        self._models.forget()
        return seen[0]

    def rollback(self, model: str, alias: str, creation: Creation, render: Callable[[Alias], str]) -> str:
        """Back to where the alias stood before its last change; once more, to where it stood before that one.

        A creation like any other: rolled back once more by a client's retry, it would be a step too far.
        Raises `InvalidRequest` when there is nothing to go back to.
        """
        found = self._models.model(model)
        with self._database.unit_of_work() as session:
            creations, aliases = CreationRepository(session), AliasRepository(session)
            creations.check(creation)
            aliases.lock(found.id)
            changes = aliases.changes(found.id, alias)
            if not changes:
                raise _no_alias(model, alias)
            target = _earlier(model, alias, stand_before(changes), aliases)
            row = aliases.point(found.id, alias, target, action="rollback", key_id=creation.key_id)
            answer = creations.remember(creation, render(_seen(aliases, found, [row])[0]))
        self._models.forget()
        return answer

    def drop(self, model: str, alias: str, key_id: str) -> None:
        """The versions stay, and a rollback brings the alias back."""
        found = self._models.model(model)
        with self._database.unit_of_work() as session:
            aliases = AliasRepository(session)
            aliases.lock(found.id)
            if not aliases.drop(found.id, alias, key_id=key_id):
                raise _no_alias(model, alias)
        self._models.forget()

    def history(self, model: str, alias: str, *, after: str | None, limit: int) -> tuple[list[AliasChange], bool]:
        """Newest first."""
        found = self._models.model(model)
        with self._database.unit_of_work() as session:
            aliases = AliasRepository(session)
            rows, more = aliases.history(found.id, alias, after=after, limit=limit)
            versions = aliases.versions(_named(rows))
        if not rows and after is None:
            raise _no_alias(model, alias)
        changes = [AliasChange(r.number, r.action, _stand(r, versions), r.key_id, r.created_at) for r in rows]
        return changes, more


def _target(model: ModelRow, wanted: AliasSet, aliases: AliasRepository) -> Target:
    numbers = {*wanted.shares, *([wanted.shadow] if wanted.shadow else [])}
    live = aliases.live(model.id, numbers)
    if missing := sorted(numbers - set(live)):
        raise unknown_model(f"{model.name}:{missing[0]}")
    shares = {live[number]: share for number, share in wanted.shares.items()}
    first = max(shares, key=lambda version_id: shares[version_id])
    # One version with all of it needs no shares.
    weights = shares if len(shares) > 1 else None
    return Target(first, weights, live[wanted.shadow] if wanted.shadow else None)


def _earlier(model: str, alias: str, change: AliasChangeRow | None, aliases: AliasRepository) -> Target:
    """Raises `InvalidRequest` when there was no earlier state, or it names a version that was deleted since."""
    if change is None or change.version_id is None:
        raise InvalidRequest(
            f"{model}@{alias} has no earlier state to go back to: point it with PUT, or DELETE it",
            code="nothing_to_roll_back",
            param="alias",
        )
    for row in aliases.versions(_named([change])).values():
        if row.deleted_at is not None:
            raise InvalidRequest(
                f"{model}@{alias} named {row.label} before, which was deleted since: point it elsewhere with PUT",
                code="version_deleted",
                param="alias",
            )
    return Target(change.version_id, change.weights, change.shadow_id)


def _named(rows: Iterable[AliasRow | AliasChangeRow]) -> list[str | None]:
    return [i for row in rows for i in (row.version_id, row.shadow_id, *(row.weights or ()))]


def _stand(row: AliasRow | AliasChangeRow, versions: Mapping[str, VersionRow]) -> Stand:
    def number(version_id: str | None) -> int | None:
        return versions[version_id].number if version_id else None

    weights = {versions[i].number or 0: share for i, share in row.weights.items()} if row.weights else None
    return Stand(number(row.version_id), weights and dict(sorted(weights.items())), number(row.shadow_id))


def _seen(aliases: AliasRepository, model: ModelRow, rows: list[AliasRow]) -> list[Alias]:
    versions = aliases.versions(_named(rows))
    return [Alias(model.name, row.alias, _stand(row, versions), row.updated_at) for row in rows]


def _no_alias(model: str, alias: str) -> NotFound:
    return NotFound(f"{model} has no alias {alias!r}: GET /v1/models/{model}/aliases lists them", param="alias")
