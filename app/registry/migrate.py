"""Brings a database to the schema of this code, and tells whether it is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from app.core.errors import Unavailable
from app.registry.session import sqlalchemy_url

# Any number no other program uses: two services starting at once migrate one after the other.
_LOCK = 0x6D77_0001


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    return config


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    engine = create_engine(sqlalchemy_url(url), connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            yield connection
    except OperationalError as exc:
        reason = str(exc.orig).strip().splitlines()[-1]
        raise Unavailable(f"PostgreSQL does not answer ({reason}): check MODELWRIGHT_DATABASE_URL") from exc
    finally:
        engine.dispose()


def upgrade(url: str, revision: str = "head") -> None:
    """Run the missing migrations up to `revision`; safe to call from several processes at once.

    Raises `Unavailable` when the server does not answer.
    """
    with _connected(url) as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def revisions(url: str) -> tuple[str | None, str | None]:
    """(the database's revision, this code's revision). Raises `Unavailable` when the server does not answer."""
    with _connected(url) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current, ScriptDirectory.from_config(_config()).get_current_head()
