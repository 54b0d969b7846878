"""Connections to Postgres and the one place that commits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest, Unavailable
from app.registry.breaker import Breaker
from app.registry.driver import BoundedConnection, NoAnswer, deadline


def sqlalchemy_url(url: str) -> str:
    """The same URL with the psycopg driver named."""
    scheme, rest = url.split("://", 1)
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url


class Database:
    """An engine and its transactions, none of which waits longer than `patience` seconds, whatever the server does."""

    def __init__(self, url: str, pool_size: int = 10, patience: float = 1.5) -> None:
        # The server gives up on a slow statement before we give up on the server: silence then means a frozen one.
        # A frozen worker of ours must not keep its row locks, so its idle transaction ends too.
        limits = {"statement_timeout": int(patience * 750), "idle_in_transaction_session_timeout": 10_000}
        self.engine: Engine = create_engine(
            sqlalchemy_url(url),
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_timeout=patience * 2 / 3,  # those behind the waiting ones wait too, and a late slot is of no use
            connect_args={"options": " ".join(f"-c {name}={ms}" for name, ms in limits.items())},
        )
        event.listen(self.engine, "do_connect", _connect)
        self._patience, self._breaker = patience, Breaker()

    @contextmanager
    def unit_of_work(self) -> Iterator[Session]:
        """One transaction: commits when the block ends, rolls back when it raises.

        Raises `Unavailable` when the server cannot be reached or stays silent; a commit may have taken place then.
        """
        if not self._breaker.admits():
            raise Unavailable("the database did not answer a moment ago; try again", code="no_database")
        answered = True
        try:
            with (
                deadline(self._patience),
                Session(self.engine, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session
        except PoolTimeout as exc:
            answered = False  # as when it is silent; whoever is answered meanwhile says that it is not
            raise Unavailable("the database is busy: every connection is in use", code="no_database") from exc
        except DataError as exc:  # a NUL character or a number no column holds
            raise InvalidRequest(f"a value cannot be stored: {exc.orig}") from exc
        except DBAPIError as exc:
            answered = not isinstance(exc.orig, NoAnswer)
            if exc.connection_invalidated or exc.__class__.__name__ in ("OperationalError", "InterfaceError"):
                raise Unavailable("the database does not answer; try again", code="no_database") from exc
            raise
        finally:
            self._breaker.record(answered=answered)

    def dispose(self) -> None:
        self.engine.dispose()


def _connect(_dialect: Any, _record: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundedConnection:
    return BoundedConnection.connect(*args, **kwargs)
