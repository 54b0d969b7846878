"""Keyset paging by `after=<last id>`, the way OpenAI's lists page."""

from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest

RowT = TypeVar("RowT")


def page(
    session: Session,
    query: Select[Any],
    row: type[RowT],
    *,
    after: str | None,
    limit: int,
    order: str = "desc",
) -> tuple[list[RowT], bool]:
    """(rows, whether more follow), ordered by creation.

    Raises `InvalidRequest` when `after` names nothing: starting over would make a paging client loop for ever.
    """
    key = tuple_(row.created_at, row.id)  # type: ignore[attr-defined]
    if after is not None:
        last = session.get(row, after)
        if last is None:
            raise InvalidRequest(f"after={after!r} names no object of this list", param="after")
        edge = (last.created_at, last.id)  # type: ignore[attr-defined]
        query = query.where(key < edge if order == "desc" else key > edge)
    created, ident = row.created_at, row.id  # type: ignore[attr-defined]
    query = query.order_by(created.desc(), ident.desc()) if order == "desc" else query.order_by(created, ident)
    found = list(session.scalars(query.limit(limit + 1)).unique())
    return found[:limit], len(found) > limit
