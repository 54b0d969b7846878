"""Why a training child ends early. `entry.py` turns these into the `Failed` message and the exit code."""

from app.contracts.training import FailureCode


class TrainingFailed(Exception):
    """A known failure: `code` goes to the wire, `message` states value, limit and remedy."""

    def __init__(self, code: FailureCode, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code: FailureCode = code
        self.message = message
        self.param = param


class Stopped(Exception):
    """The parent asked us to stop (SIGTERM)."""
