"""OpenAI's Model object, and our versions and aliases."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.contracts.common import Strict
from app.core.clock import unix

if TYPE_CHECKING:
    from app.registry.tables import AliasRow, VersionRow


class ModelObject(BaseModel):
    """`id` is the reference that was asked for; every form of it answers on `/predict`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    task: str | None = None
    version: int | None = None
    """The version this id answers with now."""


class VersionObject(BaseModel):
    """One immutable artifact and everything that made it."""

    id: str
    object: Literal["model.version"] = "model.version"
    created_at: int
    model: str
    version: int | None
    """None: an exported checkpoint."""
    fine_tuned_model: str
    task: str
    status: Literal["ready"] = "ready"
    job_id: str
    base_model: str
    base_model_revision: str
    labels: list[str]
    max_length: int
    metrics: dict[str, Any]
    datasets: dict[str, Any]
    recipe: dict[str, Any]
    parity: dict[str, Any]
    sizes: dict[str, int]
    digest: str
    code_version: str

    @classmethod
    def of(cls, row: "VersionRow") -> "VersionObject":
        return cls(
            id=row.id,
            created_at=unix(row.created_at),
            model=row.model.name,
            version=row.number,
            fine_tuned_model=row.ft_id,
            task=row.task,
            job_id=row.job_id,
            base_model=row.base_model,
            base_model_revision=row.base_revision,
            labels=row.serving["labels"],
            max_length=row.serving["max_length"],
            metrics=row.metrics,
            datasets=row.datasets,
            recipe=row.recipe,
            parity=row.parity,
            sizes=row.sizes,
            digest=row.digest,
            code_version=row.code_version,
        )


class AliasSet(Strict):
    """`PUT /v1/models/{model}/aliases/{alias}`."""

    version: Annotated[int, Field(ge=1, le=999_999_999)]


class AliasObject(BaseModel):
    object: Literal["model.alias"] = "model.alias"
    alias: str
    model: str
    version: int
    updated_at: int

    @classmethod
    def of(cls, row: "AliasRow") -> "AliasObject":
        return cls(
            alias=row.alias,
            model=row.version.model.name,
            version=row.version.number,
            updated_at=unix(row.updated_at),
        )
