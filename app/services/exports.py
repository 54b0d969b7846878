"""Untrained base models as callers see them: made servable when somebody first asks for one."""

from datetime import timedelta

from app.core.errors import InvalidRequest, Unavailable
from app.core.settings import Settings
from app.registry.exports import ExportRepository
from app.registry.session import Database
from app.registry.tables import VersionRow

# A failed export may have met a full disk: it is tried again, but not by every request.
_AGAIN_AFTER = timedelta(minutes=1)


class ExportService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings

    def of_base(self, name: str) -> VersionRow:
        """The version that answers as the base model `name`.

        Raises `Unavailable` (`model_preparing`) while a trainer exports it, `InvalidRequest` when it cannot be.
        """
        with self._database.unit_of_work() as session:
            exports = ExportRepository(session)
            found = exports.version(name) or exports.version_or_job(
                name, max_attempts=self._settings.max_attempts, again_after=_AGAIN_AFTER
            )
        if isinstance(found, VersionRow):
            return found
        if found.state in ("failed", "cancelled"):
            reason = found.error["message"] if found.error else "its export was cancelled"
            raise InvalidRequest(
                f"{name!r} does not answer by itself: {reason}", code="model_not_servable", param="model"
            )
        raise Unavailable(
            f"{name!r} is being exported, once and for all, which takes some seconds: send the request again",
            code="model_preparing",
        )
