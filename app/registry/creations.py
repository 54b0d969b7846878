"""Rows of what creating calls made and answered, and the lock that keeps two equal calls apart.

The answer is written in the transaction that inserts the object: a crash between commit and reply loses neither.
Knows no object and no HTTP.
"""

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.creation import Creation
from app.core.errors import AlreadyCreated, CreationInProgress, IdempotencyKeyReused
from app.registry.tables import CreationRow

_KEYED = "48 hours"
_RETRIED = "10 minutes"
"""The stock client has given up by then: it retries twice, at most 120 s apart."""


class CreationRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def check(self, creation: Creation) -> None:
        """Keep equal calls out until this transaction ends. To be called before anything else is read or checked.

        Raises `AlreadyCreated` with the first answer, `IdempotencyKeyReused` when the key stands for another body,
        `CreationInProgress` when an equal call has not ended. Calls that say nothing share the lock: they stop a
        retry of one of them, not each other.
        """
        key = creation.idempotency_key
        lock = func.pg_try_advisory_xact_lock if creation.may_repeat else func.pg_try_advisory_xact_lock_shared
        name = f"creation {creation.key_id} " + (f"body {creation.fingerprint}" if key is None else f"key {key}")
        # A statement of its own: the next one then sees what the lock's last holder committed.
        if not self.session.scalar(select(lock(func.hashtextextended(name, 0)))):
            raise CreationInProgress("the same call is still being worked on: send it again in a second")
        if not creation.may_repeat:
            return
        query = select(CreationRow).where(
            CreationRow.key_id == creation.key_id,
            CreationRow.idempotency_key == key,  # IS NULL without a key: a keyed call is nobody else's first try
            ~_older(_RETRIED if key is None else _KEYED),
        )
        if key is None:
            query = query.where(CreationRow.fingerprint == creation.fingerprint)
        found = self.session.scalars(query.order_by(CreationRow.number.desc()).limit(1)).first()
        if found is None:
            return
        if found.fingerprint != creation.fingerprint:
            raise IdempotencyKeyReused(
                f"the Idempotency-Key {key!r} was used for another call within 48 hours: send the same body to get "
                "its answer again, or a new key to create something new",
                param="idempotency-key",
            )
        raise AlreadyCreated(found.answer)

    def remember(self, creation: Creation, answer: str) -> str:
        """Write the answer down and return it. A row of the same key that is past its time gives way."""
        values = {"fingerprint": creation.fingerprint, "answer": answer}
        self.session.execute(
            insert(CreationRow)
            .values(key_id=creation.key_id, idempotency_key=creation.idempotency_key, **values)
            .on_conflict_do_update(
                index_elements=["key_id", "idempotency_key"],
                index_where=text("idempotency_key IS NOT NULL"),
                set_={**values, "created_at": func.clock_timestamp()},
            )
        )
        return answer

    def delete_old(self) -> int:
        """Remove the rows that no call can match any more; returns how many."""
        old = or_(_older(_KEYED), and_(CreationRow.idempotency_key.is_(None), _older(_RETRIED)))
        return len(self.session.scalars(delete(CreationRow).where(old).returning(CreationRow.number)).all())


def _older(age: str) -> ColumnElement[bool]:
    return CreationRow.created_at <= func.clock_timestamp() - text(f"interval '{age}'")
