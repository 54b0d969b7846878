"""Rows of pins: versions that somebody loaded or unloaded on purpose. What follows from them: `placement.py`."""

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.registry.tables import PinRow


class PinRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def put(self, version_id: str, *, loaded: bool, max_batch_size: int | None = None) -> None:
        values = {"loaded": loaded, "max_batch_size": max_batch_size}
        self.session.execute(
            insert(PinRow)
            .values(version_id=version_id, **values)
            .on_conflict_do_update(index_elements=["version_id"], set_={**values, "updated_at": func.clock_timestamp()})
        )

    def max_batch_size(self, version_id: str) -> int | None:
        """Most rows in a batch of this version, if somebody said so."""
        return self.session.scalar(select(PinRow.max_batch_size).where(PinRow.version_id == version_id))

    def unloaded(self) -> set[str]:
        """Ids of the versions that must not answer."""
        return set(self.session.scalars(select(PinRow.version_id).where(PinRow.loaded.is_(False))))
