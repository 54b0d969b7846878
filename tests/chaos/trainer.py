"""`modelwright worker trainer` whose children also know the toy task: `python -m tests.chaos.trainer`.

Everything else is the product's own: the command, its arguments, Celery, the claim, the child's handling.
"""

import os
import runpy
import sys

import workers.child
from app.cli.run import worker

workers.child.ENTRY = "tests.chaos.toy"


def _here(_path: str, command: list[str]) -> None:
    """In the place of `execv`: the same Celery command in this process, which knows the other entry."""
    sys.argv = command[2:]
    runpy.run_module("celery", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    os.execv = _here  # type: ignore[assignment]
    worker("trainer")
