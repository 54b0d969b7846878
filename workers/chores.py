"""What each trainer does beside its jobs, every so often, in a thread each: so that one cannot hold up another.

Knows how often; what a chore does stands in its own file.
"""

import time
from collections.abc import Callable
from threading import Event, Thread

import redis

from app.contracts.queues import WORKERS
from app.core.errors import ModelwrightError
from app.core.logging import get_logger
from app.core.queue import Bell
from workers.context import WorkerContext
from workers.lifecycle import STOP_SECONDS, run_waiting
from workers.reconciler import reconcile_once
from workers.sweep import clean_work, sweep_once
from workers.webhooks import deliver_once

log = get_logger(__name__)

HEARTBEAT_SECONDS = 2.0
RECONCILE_SECONDS = 2.0
EXPORT_SECONDS = 1.0
WEBHOOK_SECONDS = 1.0
SWEEP_SECONDS = 600.0


def start(context: WorkerContext, name: str) -> Callable[[], None]:
    """Run the chores until the returned function is called."""
    stop, bell = Event(), Bell(context.redis_url)
    client = redis.Redis.from_url(context.redis_url, socket_timeout=2, socket_connect_timeout=1)
    clean_work(context.settings.home)

    def say_alive() -> None:
        client.set(f"{WORKERS}:trainer:{name}", "1", ex=int(HEARTBEAT_SECONDS * 3))

    # Somebody waits for an export, and it takes seconds: it runs beside the trainings, not in turn with them.
    chores: list[tuple[float, Callable[[], object]]] = [
        (HEARTBEAT_SECONDS, say_alive),
        (RECONCILE_SECONDS, lambda: reconcile_once(context, bell)),
        (EXPORT_SECONDS, lambda: run_waiting(context, "export")),
        (WEBHOOK_SECONDS, lambda: deliver_once(context)),
        (SWEEP_SECONDS, lambda: sweep_once(context)),
    ]
    threads = [Thread(target=_repeat, args=(stop, *chore), daemon=True) for chore in chores]
    for thread in threads:
        thread.start()

    def stop_all() -> None:
        stop.set()
        until = time.monotonic() + STOP_SECONDS  # an export is handed back meanwhile
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        bell.close()

    return stop_all


def _repeat(stop: Event, seconds: float, chore: Callable[[], object]) -> None:
    while True:
        try:
            chore()
        except (ModelwrightError, redis.RedisError) as exc:
            log.warning("chore_failed", reason=str(exc))
        except Exception:
            log.exception("chore_failed")
        if stop.wait(seconds):
            return
