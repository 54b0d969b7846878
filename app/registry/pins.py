"""Rows of pins: versions that somebody loaded or unloaded on purpose. What follows from them: `placement.py`."""

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.registry.tables import PinRow


class PinRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def put(self, version_id: str, *, loaded: bool) -> None:
        self.session.execute(
            insert(PinRow)
            .values(version_id=version_id, loaded=loaded)
            .on_conflict_do_update(
                index_elements=["version_id"], set_={"loaded": loaded, "updated_at": func.clock_timestamp()}
            )
        )

    def unloaded(self) -> set[str]:
        """Ids of the versions that must not answer."""
        return set(self.session.scalars(select(PinRow.version_id).where(PinRow.loaded.is_(False))))
