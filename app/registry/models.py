"""Rows of models and versions: names in, versions out. Aliases are changed in `aliases.py`."""

import re
from typing import Any, NamedTuple

from sqlalchemy import Select, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.ids import new_id
from app.registry.paging import page
from app.registry.tables import AliasRow, ModelRow, VersionRow

_REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@([A-Za-z0-9][A-Za-z0-9._-]{0,63})|:([1-9][0-9]{0,8}))?")


class Found(NamedTuple):
    """What a reference means now."""

    version: VersionRow
    alias: AliasRow | None = None
    """The alias it was found by, which may send shares of the requests elsewhere."""


class ModelRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def by_name(self, name: str) -> ModelRow | None:
        """Names differ in more than case."""
        return self.session.scalars(select(ModelRow).where(ModelRow.name_key == name.lower())).first()

    def page(self, *, after: str | None, limit: int) -> tuple[list[ModelRow], bool]:
        return page(self.session, select(ModelRow), ModelRow, after=after, limit=limit)

    def all_versions(self) -> list[VersionRow]:
        query = select(VersionRow).where(VersionRow.deleted_at.is_(None), VersionRow.number.is_not(None))
        return list(self.session.scalars(query.order_by(VersionRow.created_at.desc())).unique())

    def versions(self, model_id: str, *, after: str | None, limit: int) -> tuple[list[VersionRow], bool]:
        query = select(VersionRow).where(
            VersionRow.model_id == model_id, VersionRow.deleted_at.is_(None), VersionRow.number.is_not(None)
        )
        return page(self.session, query, VersionRow, after=after, limit=limit)

    def resolve(self, reference: str) -> VersionRow | None:
        """The version that `reference` names; of an alias with weights, the one with the largest share."""
        found = self.find(reference)
        return found.version if found else None

    def find(self, reference: str) -> Found | None:
        """`name` (alias `production`, else newest), `name@alias`, `name:number` or an `ft:` id; None if unknown."""
        live = select(VersionRow).where(VersionRow.deleted_at.is_(None))
        if reference.startswith("ft:"):
            return self._first(live.where(VersionRow.ft_id == reference))
        match = _REFERENCE.fullmatch(reference)
        model = self.by_name(match[1]) if match else None
        if match is None or model is None:
            return None
        if match[3]:
            return self._first(live.where(VersionRow.model_id == model.id, VersionRow.number == int(match[3])))
        alias = self.session.get(AliasRow, (model.id, match[2] or "production"))
        if alias is not None and alias.version.deleted_at is None:
            return Found(alias.version, alias)
        if match[2]:
            return None
        numbered = live.where(VersionRow.model_id == model.id, VersionRow.number.is_not(None))
        return self._first(numbered.order_by(VersionRow.number.desc()).limit(1))

    def _first(self, query: Select[VersionRow]) -> Found | None:
        row = self.session.scalars(query).first()
        return Found(row) if row else None

    def version(self, version_id: str) -> VersionRow | None:
        return self.session.get(VersionRow, version_id)

    def publish(self, *, name: str, task: str, values: dict[str, Any], numbered: bool = True) -> VersionRow:
        """Add the next version under `name`, making the model on its first. Numbers count 1, 2, 3 without gaps.

        One that is not `numbered`, an exported checkpoint, answers to its `ft:` id alone.
        """
        self.session.execute(
            insert(ModelRow)
            .values(id=new_id("model-"), name=name, name_key=name.lower(), task=task)
            .on_conflict_do_nothing(index_elements=["name_key"])
        )
        model_id, number = self.session.execute(
            update(ModelRow)
            .where(ModelRow.name_key == name.lower())
            .values(last_version=ModelRow.last_version + int(numbered))
            .returning(ModelRow.id, ModelRow.last_version)
        ).one()
        row = VersionRow(id=new_id("ver-"), model_id=model_id, number=number if numbered else None, task=task, **values)
        self.session.add(row)
        self.session.flush()
        return row

    def delete_version(self, row: VersionRow) -> None:
        row.deleted_at = self.session.scalar(select(func.clock_timestamp()))
