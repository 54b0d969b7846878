"""What to do with a job whose child is gone: a pure function of how it ended. Bounded retries, never a loop.

Fails at once: what would fail again (`diverged`, `invalid_dataset`, ...). Tried again, `max_attempts` runs in a row
that saved nothing: what may not (a lost process, a full disk). Memory that ran out: once, with half the batch.
"""

import signal
from dataclasses import dataclass
from pathlib import Path

from app.contracts.training import Failed

DISK_RETRY_SECONDS = 30.0
_TRIED_AGAIN = {"worker_lost", "worker_error", "crashed", "hung", "disk_full"}
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}


@dataclass(frozen=True)
class Ending:
    """How a child ended without finishing."""

    exit_code: int
    """Negative: the signal."""
    failed: Failed | None
    """What it said itself."""
    hung: bool = False
    """Its parent killed it, after hearing nothing for `quiet_seconds`."""
    quiet_seconds: float = 0.0
    out_of_memory: bool = False
    """The kernel counted an out-of-memory kill meanwhile."""


@dataclass(frozen=True)
class Outcome:
    """Try again, or fail with this error."""

    retry: bool
    code: str
    message: str
    param: str | None = None
    after_seconds: float = 0.0
    halve_batch: bool = False


def judge(ending: Ending, *, failures: int, max_attempts: int, halvings: int, batch_size: int | None) -> Outcome:
    """`failures` counts runs in a row, this one included, that saved nothing; `batch_size` is the one in use."""
    code, message = _classify(ending)
    param = ending.failed.param if ending.failed else None
    if code == "out_of_memory" and halvings == 0 and batch_size != 1:
        return Outcome(
            True, code, f"{message}; trying once more with half the batch, accumulated twice", None, 0.0, True
        )
    if code not in _TRIED_AGAIN:
        return Outcome(False, code, message, param)
    if failures >= max_attempts:
        return Outcome(False, code, f"{message}; {failures} runs in a row saved no progress")
    return Outcome(
        True, code, f"{message}; the job goes back to the queue", None, DISK_RETRY_SECONDS * (code == "disk_full")
    )


def _classify(ending: Ending) -> tuple[str, str]:
    if ending.failed is not None:
        return ending.failed.code, ending.failed.message
    if ending.hung:
        return "hung", (
            f"the training process said nothing for {ending.quiet_seconds:.0f} s and was killed: lower batch_size, or "
            "raise MODELWRIGHT_HANG_SECONDS if a step may take that long"
        )
    if ending.out_of_memory:
        return "out_of_memory", (
            "the kernel killed the training process for want of memory: lower batch_size or max_length, or give the "
            "trainer more memory"
        )
    if -ending.exit_code in _CRASHES:
        name = signal.Signals(-ending.exit_code).name
        return "crashed", f"the training process crashed ({name}): the trainer's log has its last words"
    reason = f"signal {-ending.exit_code}" if ending.exit_code < 0 else f"exit code {ending.exit_code}"
    return "worker_lost", f"the training process was lost ({reason}): see the trainer's log"


def oom_kills() -> int:
    """How often the kernel has killed for want of memory in this process's cgroup; 0 where it does not say."""
    try:
        path = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
        events = Path(f"/sys/fs/cgroup{path}").joinpath("memory.events").read_text()
    except (OSError, IndexError):
        return 0
    return next((int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill ")), 0)
