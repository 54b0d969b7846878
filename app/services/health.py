"""Whether this service can do its work now. Readiness tells what is missing; liveness depends on nothing."""

import asyncio
from dataclasses import dataclass

from sqlalchemy import text

from app.core.dataplane import DataPlane
from app.core.errors import ModelwrightError
from app.registry.session import Database

_TIMEOUT = 2.0


@dataclass(frozen=True)
class Check:
    """One thing that must work."""

    name: str
    ok: bool
    detail: str


class HealthService:
    def __init__(self, database: Database, plane: DataPlane) -> None:
        self._database, self._plane = database, plane

    async def checks(self) -> list[Check]:
        """All checks, each within two seconds."""
        return list(await asyncio.gather(self._postgres(), self._workers("inference"), self._workers("trainer")))

    async def _postgres(self) -> Check:
        def ask() -> None:
            with self._database.unit_of_work() as session:
                session.execute(text("SELECT 1"))

        try:
            await asyncio.wait_for(asyncio.to_thread(ask), _TIMEOUT)
        except (ModelwrightError, TimeoutError) as exc:
            return Check("postgres", False, f"does not answer ({str(exc) or 'timeout'})")
        return Check("postgres", True, "answers")

    async def _workers(self, role: str) -> Check:
        try:
            found = await asyncio.wait_for(self._plane.workers(role), _TIMEOUT)
        except (ModelwrightError, TimeoutError) as exc:
            return Check(role, False, f"valkey does not answer ({str(exc) or 'timeout'})")
        if not found:
            return Check(role, False, f"no live {role} worker: start one with `modelwright worker {role}`")
        return Check(role, True, f"{len(found)} alive")
