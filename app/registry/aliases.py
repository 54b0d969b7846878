"""Rows of aliases and of every change to one. Knows what a rollback goes back to; chooses no version for a request.

Whoever changes an alias, or deletes a version, holds the model's lock first: then no alias can come to name a version
that is being deleted, and two rollbacks at once go back two steps.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest
from app.registry.tables import AliasChangeRow, AliasRow, ModelRow, VersionRow

Action = Literal["set", "rollback", "delete"]


class Target(NamedTuple):
    """Where an alias sends its requests, by version ids."""

    version_id: str
    weights: dict[str, float] | None
    shadow_id: str | None


def stand_before(changes: Iterable[AliasChangeRow]) -> AliasChangeRow | None:
    """What a rollback goes back to, given all changes, oldest first; None when there is nothing.

    Each rollback undoes one more change, and never brings back what an earlier one left. A state in which the alias
    was deleted is skipped.
    """
    stands: list[AliasChangeRow] = []
    for change in changes:
        if change.action == "rollback":
            _step_back(stands)
        else:
            stands.append(change)
    _step_back(stands)
    return stands[-1] if stands else None


def _step_back(stands: list[AliasChangeRow]) -> None:
    del stands[-1:]
    while stands and stands[-1].action == "delete":
        stands.pop()


class AliasRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def lock(self, model_id: str) -> None:
        """Keep others from changing the model's aliases and from deleting its versions until this transaction ends."""
        self.session.execute(select(ModelRow.id).where(ModelRow.id == model_id).with_for_update(key_share=True))

    def all(self, model_id: str) -> list[AliasRow]:
        query = select(AliasRow).where(AliasRow.model_id == model_id).order_by(AliasRow.alias)
        return list(self.session.scalars(query).unique())

    def naming(self, version_id: str) -> list[str]:
        """The aliases through which a version answers or is a shadow."""
        named = or_(
            AliasRow.version_id == version_id,
            AliasRow.shadow_id == version_id,
            AliasRow.weights.op("?")(version_id),
        )
        return list(self.session.scalars(select(AliasRow.alias).where(named).order_by(AliasRow.alias)))

    def live(self, model_id: str, numbers: Iterable[int]) -> dict[int, str]:
        """Number -> id of those of a model's versions that are not deleted."""
        query = select(VersionRow.number, VersionRow.id).where(
            VersionRow.model_id == model_id, VersionRow.number.in_(numbers), VersionRow.deleted_at.is_(None)
        )
        return {number: version_id for number, version_id in self.session.execute(query) if number is not None}

    def versions(self, ids: Iterable[str | None]) -> dict[str, VersionRow]:
        """By id, deleted ones too."""
        if not (named := {i for i in ids if i is not None}):
            return {}
        query = select(VersionRow).where(VersionRow.id.in_(named))
        return {row.id: row for row in self.session.scalars(query).unique()}

    # --- changes, each written down in the transaction that makes it ---

    def point(self, model_id: str, alias: str, target: Target, *, action: Action, key_id: str) -> AliasRow:
        """Make the alias, or move it. A `set` that changes nothing is no change: sent twice, it is one step back."""
        row = self.session.get(AliasRow, (model_id, alias))
        if row is None:
            row = AliasRow(model_id=model_id, alias=alias)
            self.session.add(row)
        elif action == "set" and (row.version_id, row.weights, row.shadow_id) == target:
            return row
        row.version_id, row.weights, row.shadow_id = target
        self._record(model_id, alias, action, key_id, target)
        self.session.flush()
        self.session.refresh(row)
        return row

    def drop(self, model_id: str, alias: str, *, key_id: str) -> bool:
        """Whether there was such an alias."""
        row = self.session.get(AliasRow, (model_id, alias))
        if row is None:
            return False
        self.session.delete(row)
        self._record(model_id, alias, "delete", key_id, None)
        return True

    def _record(self, model_id: str, alias: str, action: Action, key_id: str, target: Target | None) -> None:
        values = target._asdict() if target else {}
        self.session.add(AliasChangeRow(model_id=model_id, alias=alias, action=action, key_id=key_id, **values))

    # --- history ---

    def changes(self, model_id: str, alias: str) -> Sequence[AliasChangeRow]:
        """All of them, oldest first."""
        return self.session.scalars(self._changes(model_id, alias).order_by(AliasChangeRow.number)).all()

    def history(
        self, model_id: str, alias: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[AliasChangeRow], bool]:
        """(changes, whether more follow), newest first. Raises `InvalidRequest` when `after` names none of them."""
        query = self._changes(model_id, alias)
        if after is not None:
            known = after.isdecimal() and len(after) <= 18
            if not known or self.session.scalars(query.where(AliasChangeRow.number == int(after))).first() is None:
                raise InvalidRequest(f"after={after!r} names no change of this alias", param="after")
            query = query.where(AliasChangeRow.number < int(after))
        found = self.session.scalars(query.order_by(AliasChangeRow.number.desc()).limit(limit + 1)).all()
        return found[:limit], len(found) > limit

    @staticmethod
    def _changes(model_id: str, alias: str) -> Select[AliasChangeRow]:
        return select(AliasChangeRow).where(AliasChangeRow.model_id == model_id, AliasChangeRow.alias == alias)
