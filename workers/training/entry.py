"""The training child: `python -m workers.training.entry SPEC.json [--messages-fd N]`, one fresh process a
job.

Reads a `TrainingSpec`, says what happens as JSON lines, writes `artifact/` and `metrics.csv` under the spec's
output. Exit code 0 after `Finished`, 1 after `Failed`, 143 when told to stop. Knows no database, no queue and
no store.
"""

import argparse
import errno
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from app.contracts.training import Failed, TrainingSpec
from app.core.process import die_with_parent
from workers.training.errors import Stopped, TrainingFailed
from workers.training.reporter import Reporter

STOPPED = 128 + signal.SIGTERM  # what `workers/child.py` takes for a stop


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="workers.training.entry", description="Train one model.")
    parser.add_argument("spec", type=Path, help="JSON file with a TrainingSpec")
    parser.add_argument("--messages-fd", type=int, default=1, help="file descriptor for messages (default: stdout)")
    options = parser.parse_args(arguments)
    die_with_parent(signal.SIGKILL)
    with os.fdopen(options.messages_fd, "w", encoding="utf-8", closefd=False) as stream:
        reporter = Reporter(stream)
        signal.signal(signal.SIGTERM, lambda *_: reporter.stop())
        return run_spec(options.spec, reporter)


def run_spec(spec_file: Path, reporter: Reporter) -> int:
    """Run the job of a spec file and say how it ended; returns the exit code."""
    try:
        spec = TrainingSpec.model_validate_json(spec_file.read_bytes())
        _stay_offline()
        # torch takes seconds to load; a stop that arrives meanwhile is answered at the first check.
        from workers.training.job import run

        run(spec, reporter)
    except Stopped:
        return STOPPED
    except TrainingFailed as error:
        reporter.emit(Failed(code=error.code, message=error.message, param=error.param))
        return 1
    except BrokenPipeError:
        return 1  # the parent is gone: nobody listens
    except Exception as error:
        traceback.print_exc()
        reporter.emit(_unexpected(error))
        return 1
    return 0


def _unexpected(error: Exception) -> Failed:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        advice = "lower batch_size or max_length, or raise gradient_accumulation_steps to keep the effective batch"
        return Failed(code="out_of_memory", message=f"memory ran out: {advice} ({text[:300]})")
    if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in text:
        return Failed(code="disk_full", message=f"the disk is full: free space under MODELWRIGHT_HOME ({text[:300]})")
    return Failed(code="internal_error", message=text[:1000])


def _stay_offline() -> None:
    """The child reads local folders only; libraries must not look further."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error",
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on CUDA


def leave(code: int) -> NoReturn:
    """End without taking the interpreter down piece by piece: with torch loaded that took 1.2 s of every job's end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
