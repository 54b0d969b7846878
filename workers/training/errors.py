"""Why a training child ends early. `entry.py` turns these into the `Failed` message and the exit code."""

from typing import Literal

Code = Literal["invalid_dataset", "diverged", "out_of_memory", "parity_failed", "base_model", "internal_error"]


class TrainingFailed(Exception):
    """A known failure: `code` goes to the wire, `message` states value, limit and remedy."""

    def __init__(self, code: Code, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.param = param


class Stopped(Exception):
    """The parent asked us to stop (SIGTERM)."""
