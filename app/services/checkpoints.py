"""Checkpoints as callers see them: listed, and made servable when somebody first asks for one."""

from datetime import timedelta

from app.core.errors import InvalidRequest, Unavailable
from app.registry.checkpoints import CheckpointRepository
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import CheckpointRow


class CheckpointService:
    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[CheckpointRow], bool]:
        with self._database.unit_of_work() as session:
            return CheckpointRepository(session).page(job_id, after=after, limit=limit)

    def prepare(self, reference: str) -> None:
        """Have the checkpoint of this `ft:` id exported; return when there is none, or it was deleted.

        Raises `Unavailable` (`checkpoint_preparing`) until it is served, `InvalidRequest` when it cannot be.
        """
        if ":ckpt-step-" not in reference:
            return
        with self._database.unit_of_work() as session:
            checkpoints = CheckpointRepository(session)
            row = checkpoints.by_ft_id(reference, lock=True)
            if row is None:
                return
            job = checkpoints.export(row, checkpoints.source_of(row), again_after=_AGAIN_AFTER)
            if job.state == "succeeded" and ModelRepository(session).resolve(reference) is None:
                return  # the version was deleted since; asking again would never bring it back
        if job.state == "failed":
            reason = job.error["message"] if job.error else "its export failed"
            raise InvalidRequest(f"{reference} cannot be served: {reason}", code="checkpoint_failed", param="model")
        raise Unavailable(
            f"{reference} is being exported, which takes some seconds: send the request again",
            code="checkpoint_preparing",
        )


# A failed export may have met a full disk: it is tried again, but not by every request.
_AGAIN_AFTER = timedelta(minutes=1)
