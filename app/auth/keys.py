"""API keys: made, checked, listed, revoked. The secret is shown once and kept only as its SHA-256.

Quotas are set here; who creates or claims enforces them.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from app.contracts.scopes import SCOPES, Scope, allows
from app.core.errors import InvalidRequest, NotFound, PermissionDenied, Unauthenticated
from app.core.remembered import Remembered
from app.registry.keys import KeyRepository
from app.registry.session import Database
from app.registry.tables import ApiKeyRow

_KEY = re.compile(r"mw_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
ADMIN_KEY_FILE = "admin.key"
# A revoked key works for this long at most on a gateway that has just seen it; asking Postgres for every
# prediction would cost more than the prediction.
_CACHE_SECONDS = 1.0
# From then on it is asked for again, beside the calls.
_FRESH_SECONDS = 0.5


@dataclass(frozen=True)
class Caller:
    """Who is calling."""

    key_id: str
    scopes: list[str]

    def require(self, scope: Scope) -> None:
        """Raises `PermissionDenied` naming the scope that is missing."""
        if not allows(self.scopes, scope):
            raise PermissionDenied(
                f"this key has the scopes {', '.join(self.scopes)}; this call needs {scope!r}: "
                "make a key with `modelwright keys create --scope " + scope + "`"
            )


@dataclass(frozen=True)
class Quotas:
    """What a key may have at once; None takes the setting of the same name."""

    max_queued_jobs: int | None = None
    max_stored_bytes: int | None = None
    max_trainings: int | None = None

    def given(self) -> dict[str, int]:
        """Those that are not None. Raises `InvalidRequest` for one below 1 or above what its column holds."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        for name, value in found.items():
            most = 2**63 - 1 if name == "max_stored_bytes" else 2**31 - 1
            if not 1 <= value <= most:
                raise InvalidRequest(f"{name} is {value:,}; give 1 to {most:,}", param=name)
        return found


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _found(row: ApiKeyRow | None, key_id: str) -> ApiKeyRow:
    if row is None:
        raise NotFound(f"no key {key_id!r}: `modelwright keys list` shows them")
    return row


class KeyService:
    def __init__(self, database: Database) -> None:
        self._database = database
        # A secret that was right stays right: only whether its key still works is asked again.
        self._callers: Remembered[Caller] = Remembered(
            lambda _, caller: self._working(caller.key_id), fresh=_FRESH_SECONDS, keep=_CACHE_SECONDS
        )

    def create(
        self, name: str, scopes: list[str], expires_in_days: float | None = None, quotas: Quotas = Quotas()
    ) -> str:
        """Make a key and return its text, the only time it is known."""
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        expires = datetime.now(UTC) + timedelta(days=expires_in_days) if expires_in_days is not None else None
        self._add(key_id, secret, name, scopes, expires_at=expires, **quotas.given())
        return f"mw_{key_id}_{secret}"

    def _add(self, key_id: str, secret: str, name: str, scopes: list[str], **values: Any) -> None:
        unknown = [s for s in scopes if s not in SCOPES]
        if unknown or not scopes:
            raise InvalidRequest(f"unknown scope {', '.join(unknown) or '(none)'}: choose from {', '.join(SCOPES)}")
        if not 1 <= len(name) <= 64:
            raise InvalidRequest(f"the name has {len(name)} characters; give it 1 to 64")
        with self._database.unit_of_work() as session:
            KeyRepository(session).add(
                ApiKeyRow(id=key_id, name=name, secret_sha256=_digest(secret), scopes=scopes, **values)
            )

    def ensure_admin(self, home: Path, given: str | None = None) -> str | None:
        """Make the first admin key when no key works, and write it to `home/admin.key`; None when one does.

        `given` (`MODELWRIGHT_ADMIN_KEY`) is registered as it is, once.
        """
        if given is not None:
            match = _KEY.fullmatch(given)
            if match is None:
                raise InvalidRequest(
                    "MODELWRIGHT_ADMIN_KEY must look like mw_<16 hex digits>_<43 characters of A-Za-z0-9_->"
                )
            with self._database.unit_of_work() as session:
                known = KeyRepository(session).get(match[1]) is not None
            if not known:
                self._add(match[1], match[2], "admin (given)", ["admin"])
            return None
        with self._database.unit_of_work() as session:
            if KeyRepository(session).any_working():
                return None
        key = self.create("admin", ["admin"])
        home.mkdir(parents=True, exist_ok=True)
        path = home / ADMIN_KEY_FILE
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(key + "\n")
        return key

    def any_working(self) -> bool:
        with self._database.unit_of_work() as session:
            return KeyRepository(session).any_working()

    def all(self) -> list[ApiKeyRow]:
        with self._database.unit_of_work() as session:
            return KeyRepository(session).all()

    def update(self, key_id: str, quotas: Quotas, *, reset: bool = False) -> None:
        """Set the quotas given; `reset` first puts all back to the settings. Raises `NotFound`."""
        values: dict[str, int | None] = {**(asdict(Quotas()) if reset else {}), **quotas.given()}
        with self._database.unit_of_work() as session:
            row = _found(KeyRepository(session).get(key_id), key_id)
            for name, value in values.items():
                setattr(row, name, value)

    def revoke(self, key_id: str) -> None:
        """Raises `NotFound` for an id that no key has."""
        with self._database.unit_of_work() as session:
            row = _found(KeyRepository(session).get(key_id), key_id)
            row.revoked_at = row.revoked_at or datetime.now(UTC)
        self._callers.forget()

    def cached(self, key: str) -> Caller | None:
        """The caller behind a key that worked less than a second ago; never blocks."""
        return self._callers.get(_digest(key))

    def cached_by_id(self, key_id: str) -> Caller | None:
        """The same for `check_by_id`."""
        return self._callers.get(key_id)

    def check(self, key: str) -> Caller:
        """The caller behind `key`. Raises `Unauthenticated` when it is malformed, unknown, expired or revoked."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise _refused()
        return self._callers.look(_digest(key), lambda: self._verify(match[1], match[2]))

    def _verify(self, key_id: str, secret: str) -> Caller:
        with self._database.unit_of_work() as session:
            row = KeyRepository(session).working(key_id)
        if row is None or not hmac.compare_digest(row.secret_sha256, _digest(secret)):
            raise _refused()
        return Caller(row.id, row.scopes)

    def check_by_id(self, key_id: str) -> Caller:
        """The caller whose key has this id, for what is done in its name. Raises `Unauthenticated` once it is dead."""
        return self._callers.look(key_id, lambda: self._working(key_id))

    def _working(self, key_id: str) -> Caller:
        with self._database.unit_of_work() as session:
            row = KeyRepository(session).working(key_id)
        if row is None:
            raise Unauthenticated(f"the API key {key_id} has expired or was revoked")
        return Caller(row.id, row.scopes)


def _refused() -> Unauthenticated:
    return Unauthenticated(
        "the API key is unknown, expired or revoked: `modelwright keys list` shows the keys, "
        "`modelwright keys create` makes one"
    )
