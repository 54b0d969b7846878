"""Aliases and their history as callers see them: version numbers, never ids."""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from app.core.clock import unix

if TYPE_CHECKING:
    from app.services.aliases import Alias, AliasChange


class AliasObject(BaseModel):
    object: Literal["model.alias"] = "model.alias"
    alias: str
    model: str
    version: int
    """The one that answers; with `weights`, the one with the largest share."""
    weights: dict[int, float] | None
    """Version -> share of the requests; null: all to `version`."""
    shadow: int | None
    updated_at: int

    @classmethod
    def of(cls, alias: "Alias") -> "AliasObject":
        stand = alias.stand
        return cls(
            alias=alias.name,
            model=alias.model,
            version=stand.version or 0,
            weights=stand.weights,
            shadow=stand.shadow,
            updated_at=unix(alias.updated_at),
        )

    @classmethod
    def render(cls, alias: "Alias") -> str:
        return cls.of(alias).model_dump_json()


class AliasChangeObject(BaseModel):
    """One change; `version`, `weights` and `shadow` are what stood from then on, all null after a deletion."""

    id: str
    object: Literal["model.alias.change"] = "model.alias.change"
    action: Literal["set", "rollback", "delete"]
    version: int | None
    weights: dict[int, float] | None
    shadow: int | None
    key_id: str | None
    """Who did it; null: before the history was kept."""
    created_at: int

    @classmethod
    def of(cls, change: "AliasChange") -> "AliasChangeObject":
        stand = change.stand
        return cls(
            id=str(change.number),
            action=change.action,
            version=stand.version,
            weights=stand.weights,
            shadow=stand.shadow,
            key_id=change.key_id,
            created_at=unix(change.created_at),
        )
