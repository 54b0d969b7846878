"""OpenAI's Model object, and our versions."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from app.core.clock import unix

if TYPE_CHECKING:
    from app.registry.tables import VersionRow


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
