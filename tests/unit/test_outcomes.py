"""How a job goes on after its child is gone: what is tried again, how often, and with what advice."""

import signal
from typing import Any

import pytest

from app.contracts.training import Failed
from workers.outcomes import DISK_RETRY_SECONDS, Ending, Outcome, judge, oom_kills


def judged(ending: Ending, **values: Any) -> Outcome:
    return judge(ending, **{"failures": 1, "max_attempts": 3, "halvings": 0, "batch_size": 32, **values})


def said(code: Any) -> Ending:
    return Ending(1, Failed(code=code, message="m", param="p"))


@pytest.mark.parametrize(
    "code", ["invalid_dataset", "diverged", "parity_failed", "base_model", "checkpoint_corrupt", "internal_error"]
)
def test_what_would_fail_again_fails_at_once(code: str) -> None:
    assert judged(said(code)) == Outcome(False, code, "m", "p")


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        (Ending(-signal.SIGKILL, None), "worker_lost", "signal 9"),
        (Ending(-signal.SIGTERM, None), "worker_lost", "signal 15"),
        (Ending(3, None), "worker_lost", "exit code 3"),
        (Ending(-signal.SIGSEGV, None), "crashed", "SIGSEGV"),
        (Ending(-signal.SIGABRT, None), "crashed", "SIGABRT"),
        (Ending(-signal.SIGKILL, None, hung=True, quiet_seconds=60), "hung", "MODELWRIGHT_HANG_SECONDS"),
        (said("worker_error"), "worker_error", "m"),
        (said("disk_full"), "disk_full", "m"),
    ],
)
def test_what_may_not_fail_again_is_tried_again_and_given_up_in_the_end(ending: Ending, code: str, words: str) -> None:
    again = judged(ending, failures=2)
    assert again.retry and again.code == code and words in again.message
    assert again.after_seconds == (DISK_RETRY_SECONDS if code == "disk_full" else 0.0)
    last = judged(ending, failures=3)
    assert not last.retry and last.code == code and "3 runs in a row" in last.message


@pytest.mark.parametrize("ending", [said("out_of_memory"), Ending(-signal.SIGKILL, None, out_of_memory=True)])
def test_memory_that_ran_out_is_tried_once_with_half_the_batch(ending: Ending) -> None:
    first = judged(ending)
    assert first.retry and first.halve_batch and first.code == "out_of_memory"
    assert not judged(ending, halvings=1).retry
    assert not judged(ending, batch_size=1).retry


def test_a_bare_kill_is_no_evidence_of_memory() -> None:
    assert judged(Ending(-signal.SIGKILL, None)).code == "worker_lost"


def test_the_kernels_count_is_a_number_wherever_this_runs() -> None:
    assert oom_kills() >= 0
