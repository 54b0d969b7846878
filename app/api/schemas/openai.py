"""OpenAI's shapes for embeddings and moderations."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.contracts.common import ModelId, Strict

# Counted and measured by the services, whose messages name the entry; here only the wildest size is refused.
Input = Annotated[str | list[Any], Field(max_length=1_000_000)]


class EmbeddingBody(Strict):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "all-MiniLM-L6-v2", "input": ["has my parcel left yet?"]}]},
    )

    model: ModelId
    input: Input
    """A text, texts, the token ids of one input, or of several."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None


class EmbeddingObject(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """As base64: float32, little-endian."""


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage


class ModerationBody(Strict):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "comment-rules@production", "input": ["you are wonderful"]}]},
    )

    model: ModelId | None = None
    """OpenAI has a default; here there is none."""
    input: Input


class ModerationResult(BaseModel):
    """Over the model's labels, and OpenAI's category names, which its client insists on."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    """Empty for a category that the model does not know."""

    @classmethod
    def of(cls, scores: dict[str, float], threshold: float) -> "ModerationResult":
        unknown = [name for name in OPENAI_CATEGORIES if name not in scores]
        categories = {label: score >= threshold for label, score in scores.items()}
        return cls(
            flagged=any(categories.values()),
            categories=categories | dict.fromkeys(unknown, False),
            category_scores=scores | dict.fromkeys(unknown, 0.0),
            category_applied_input_types={**{label: ["text"] for label in scores}, **{name: [] for name in unknown}},
        )


class ModerationList(BaseModel):
    id: str
    model: str
    results: list[ModerationResult]


OPENAI_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
