"""Connections to Postgres and the one place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest, Unavailable


def sqlalchemy_url(url: str) -> str:
    """The same URL with the psycopg driver named."""
    scheme, rest = url.split("://", 1)
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url


class Database:
    """An engine and its transactions."""

    def __init__(self, url: str, pool_size: int = 10) -> None:
        self.engine: Engine = create_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_timeout=2,  # a caller is better off with 503 after 2 s than in a queue
            connect_args={"connect_timeout": 2, "options": "-c statement_timeout=10000"},
        )

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        """One transaction: commits when the block ends, rolls back when it raises.

        Raises `Unavailable` when the server cannot be reached.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except PoolTimeout as exc:
            raise Unavailable("the database is busy: every connection is in use", code="no_database") from exc
        except DataError as exc:  # a NUL character or a number no column holds
            raise InvalidRequest(f"a value cannot be stored: {exc.orig}") from exc
        except DBAPIError as exc:
            if exc.connection_invalidated or exc.__class__.__name__ in ("OperationalError", "InterfaceError"):
                raise Unavailable("the database does not answer; try again", code="no_database") from exc
            raise

    def dispose(self) -> None:
        self.engine.dispose()
