"""Whether this service can do its work now. Readiness tells what is missing; liveness depends on nothing."""

import asyncio
from dataclasses import dataclass

from sqlalchemy import text

from app.core.dataplane import DataPlane
from app.core.drain import draining
from app.core.errors import ModelwrightError
from app.registry.session import Database


@dataclass(frozen=True)
class Check:
    """One thing that must work."""

    name: str
    ok: bool
    detail: str


class HealthService:
    def __init__(self, database: Database, plane: DataPlane) -> None:
        self._database, self._plane = database, plane
        self._running: asyncio.Task[list[Check]] | None = None

    async def checks(self) -> list[Check]:
        """All checks, within two seconds; callers who come meanwhile share them, and the one thread they need."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._check())
        return await asyncio.shield(self._running)

    async def _check(self) -> list[Check]:
        asked = await asyncio.gather(self._postgres(), self._workers("inference"), self._workers("trainer"))
        stops = [Check("gateway", False, "told to stop: it finishes what it has")] if draining.is_set() else []
        return [*stops, *asked]

    async def _postgres(self) -> Check:
        def ask() -> None:
            with self._database.unit_of_work() as session:
                session.execute(text("SELECT 1"))

        try:
            await asyncio.to_thread(ask)
        except ModelwrightError as exc:
            return Check("postgres", False, f"does not answer ({exc})")
        return Check("postgres", True, "answers")

    async def _workers(self, role: str) -> Check:
        try:
            found = await self._plane.workers(role)
        except ModelwrightError as exc:
            return Check(role, False, f"valkey does not answer ({exc})")
        if not found:
            return Check(role, False, f"no live {role} worker: start one with `modelwright worker {role}`")
        return Check(role, True, f"{len(found)} alive")
