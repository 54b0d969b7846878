"""A creating call as seen by those who must not make its object twice. Knows neither headers nor the table."""

import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Creation:
    """Who creates, and what makes two calls the same call."""

    key_id: str
    fingerprint: str
    """SHA-256 of method, path and body."""
    idempotency_key: str | None = None
    is_retry: bool = False
    """The client says that it sent this before and saw no answer, or a failure."""

    @property
    def may_repeat(self) -> bool:
        """Whether an earlier answer can be the answer; two equal calls that say nothing make two objects."""
        return self.is_retry or self.idempotency_key is not None

    def of(self, *parts: str | bytes) -> "Creation":
        """The same call, its fingerprint extended by more of the body."""
        return replace(self, fingerprint=fingerprint(self.fingerprint, *parts))


def fingerprint(*parts: str | bytes) -> str:
    """SHA-256 over the parts, each after its length: no two lists of parts read the same."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()
