"""Rows of API keys."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.registry.tables import ApiKeyRow


class KeyRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, row: ApiKeyRow) -> None:
        self.session.add(row)
        self.session.flush()

    def get(self, key_id: str) -> ApiKeyRow | None:
        return self.session.get(ApiKeyRow, key_id)

    def working(self, key_id: str) -> ApiKeyRow | None:
        """The key, unless revoked or expired by the database's clock."""
        return self.session.scalars(
            select(ApiKeyRow).where(
                ApiKeyRow.id == key_id,
                ApiKeyRow.revoked_at.is_(None),
                (ApiKeyRow.expires_at.is_(None)) | (ApiKeyRow.expires_at > func.now()),
            )
        ).first()

    def all(self) -> list[ApiKeyRow]:
        return list(self.session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at)))

    def any_working(self) -> bool:
        return (
            self.session.scalars(
                select(ApiKeyRow.id).where(
                    ApiKeyRow.revoked_at.is_(None),
                    (ApiKeyRow.expires_at.is_(None)) | (ApiKeyRow.expires_at > func.now()),
                )
            ).first()
            is not None
        )
