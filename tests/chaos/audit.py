"""What really happened to the rows: triggers write down every change of a job, and who made it.

Polling would miss states that last milliseconds. The writer is the connection's `application_name`, which each
process of a chaos cluster sets through `PGAPPNAME`.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Any

import psycopg

_INSTALL = """
CREATE TABLE chaos_audit (
    number bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    writer text NOT NULL DEFAULT current_setting('application_name'),
    what text NOT NULL, job_id text NOT NULL, fence int, state text, old_fence int, old_state text, failures int
);
CREATE INDEX ON chaos_audit (job_id);
CREATE INDEX ON chaos_audit (state, number);
CREATE FUNCTION chaos_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos_audit (what, job_id, fence, state, failures)
            VALUES ('job', NEW.id, NEW.fence, NEW.state, NEW.failures);
    ELSIF to_jsonb(OLD) - 'rung_at' <> to_jsonb(NEW) - 'rung_at' THEN
        INSERT INTO chaos_audit (what, job_id, fence, state, old_fence, old_state, failures)
            VALUES ('job', NEW.id, NEW.fence, NEW.state, OLD.fence, OLD.state, NEW.failures);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_job AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION chaos_job();
CREATE FUNCTION chaos_owned() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos_audit (what, job_id) SELECT DISTINCT TG_TABLE_NAME, job_id FROM made;
    RETURN NULL;
END $$;
"""
_OWNED = """
CREATE TRIGGER chaos_owned AFTER INSERT ON {0} REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION chaos_owned();
"""


@dataclass(frozen=True)
class Change:
    """A row of the audit."""

    number: int
    writer: str
    what: str
    job_id: str
    fence: int | None
    state: str | None
    old_fence: int | None
    old_state: str | None
    failures: int | None

    @property
    def claims(self) -> bool:
        return self.what == "job" and self.state == "running" and self.old_fence != self.fence


class Audit:
    """Looks past the proxies, straight into the server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = Lock()
        self._connection: psycopg.Connection[Any] | None = None

    def install(self) -> None:
        self.query(_INSTALL + "".join(_OWNED.format(table) for table in ("versions", "checkpoints", "job_events")))

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows, if the statement gives any. Connects again after a restart of the server."""
        with self._lock:
            for last in (False, True):
                try:
                    if self._connection is None:
                        self._connection = psycopg.connect(self._url, autocommit=True, application_name="checker")
                    cursor = self._connection.execute(sql, values or None)
                    return cursor.fetchall() if cursor.description else []
                except psycopg.OperationalError:
                    self.close()
                    if last:
                        raise
        raise AssertionError

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def changes(self, after: int = 0, job_id: str | None = None) -> list[Change]:
        """In the order in which they were made."""
        columns = "number, writer, what, job_id, fence, state, old_fence, old_state"
        sql = f"SELECT {columns}, failures FROM chaos_audit WHERE number > %s"  # noqa: S608
        if job_id is not None:
            return [Change(*row) for row in self.query(sql + " AND job_id = %s ORDER BY number", after, job_id)]
        return [Change(*row) for row in self.query(sql + " ORDER BY number", after)]

    def last(self) -> int:
        """The newest change's number."""
        return int(self.query("SELECT coalesce(max(number), 0) FROM chaos_audit")[0][0])

    def unfinished(self) -> int:
        return int(self.query("SELECT count(*) FROM jobs WHERE finished_at IS NULL")[0][0])

    def job(self, job_id: str) -> tuple[str, int, int]:
        """State, attempt, fence."""
        state, attempt, fence = self.query("SELECT state, attempt, fence FROM jobs WHERE id = %s", job_id)[0]
        return state, attempt, fence
