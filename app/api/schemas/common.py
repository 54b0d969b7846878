"""Shapes every route shares: OpenAI's list envelope."""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

ItemT = TypeVar("ItemT", bound=BaseModel)


class ListOf(BaseModel, Generic[ItemT]):
    """`{"object": "list", "data": [...], "has_more"}`; iterating clients follow `after=<last_id>`."""

    object: Literal["list"] = "list"
    data: list[ItemT]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None

    @classmethod
    def of(cls, data: list[ItemT], has_more: bool = False) -> "ListOf[ItemT]":
        ids = [getattr(item, "id", None) for item in data]
        return cls(data=data, has_more=has_more, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None)


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool = True
