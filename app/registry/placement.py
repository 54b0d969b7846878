"""Which versions the inference workers should hold, as rows say it: what aliases name, and what somebody pinned."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.contracts.placement import Desired
from app.registry.tables import AliasRow, PinRow


def desired(session: Session) -> Desired:
    named: set[str] = set()
    for version_id, weights, shadow_id in session.execute(
        select(AliasRow.version_id, AliasRow.weights, AliasRow.shadow_id)
    ):
        named |= {version_id, *(weights or ()), *([shadow_id] if shadow_id else [])}
    pins = session.execute(select(PinRow.version_id, PinRow.loaded, PinRow.max_batch_size)).all()
    unloaded = frozenset(version_id for version_id, loaded, _ in pins if not loaded)
    named |= {version_id for version_id, loaded, _ in pins if loaded}
    return Desired(frozenset(named) - unloaded, unloaded, {version_id: rows for version_id, _, rows in pins if rows})
