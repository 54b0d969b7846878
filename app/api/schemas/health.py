"""Probes' answers."""

from pydantic import BaseModel


class CheckObject(BaseModel):
    ok: bool
    detail: str


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, CheckObject]
