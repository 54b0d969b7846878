"""The single processes: gateway, workers, migrations. `modelwright up` starts the same commands."""

import os
import sys
from typing import Annotated, Literal

import typer

from app.cli.environment import connected_settings, is_loopback
from app.contracts.queues import INFERENCE_CONTROL_QUEUE, TRAINING_QUEUE
from app.core.errors import PermissionDenied, Unavailable
from app.core.logging import configure_logging
from app.core.process import die_with_parent
from app.core.settings import Settings

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]


def gateway(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run the HTTP gateway against the configured servers."""
    import uvicorn

    settings = connected_settings()
    _check_database(settings)
    _check_keys(settings, host)
    configure_logging(settings, "gateway")
    _follow_supervisor()
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        access_log=False,  # the request log has ids and times
        log_config=None,
        timeout_graceful_shutdown=10,
        server_header=False,
    )


def worker(
    role: Annotated[Literal["trainer", "inference"], typer.Argument(help="What the worker does.")],
) -> None:
    """Run a worker; start as many as you like, on any host that sees the same servers and store."""
    settings = connected_settings()
    _follow_supervisor()
    queue = TRAINING_QUEUE if role == "trainer" else INFERENCE_CONTROL_QUEUE
    concurrency = settings.trainer_concurrency if role == "trainer" else 2
    # Threads, not prefork: the parent only waits for a child process, and ONNX Runtime does not survive a fork.
    os.execv(  # noqa: S606
        sys.executable,
        [
            *(sys.executable, "-m", "celery", "--app", "workers.celery_app", "--quiet", "worker"),
            *("--queues", queue, "--pool", "threads", "--concurrency", str(concurrency)),
            *("--hostname", f"{role}-{os.getpid()}@%h", "--loglevel", settings.log_level),
            *("--without-gossip", "--without-mingle", "--without-heartbeat", "--disable-prefetch"),
        ],
    )


def migrate() -> None:
    """Bring the database to this version's schema; safe to run from several hosts at once."""
    from app.registry.migrate import revisions, upgrade

    settings = connected_settings()
    assert settings.database_url
    upgrade(settings.database_url)
    typer.echo(f"database at revision {revisions(settings.database_url)[0]}")


def _check_database(settings: Settings) -> None:
    from app.registry.migrate import revisions

    assert settings.database_url
    current, head = revisions(settings.database_url)
    if current != head:
        raise Unavailable(f"the database is at schema {current}, this version needs {head}: run `modelwright migrate`")


def _check_keys(settings: Settings, host: str) -> None:
    """Make the first key on loopback; elsewhere one must have been set up on purpose."""
    from app.auth.keys import KeyService
    from app.registry.session import Database

    assert settings.database_url
    database = Database(settings.database_url)
    keys = KeyService(database)
    if settings.admin_key_env or is_loopback(host):
        if key := keys.ensure_admin(settings.home, settings.admin_key_env):
            typer.echo(f"admin key (shown once; also in {settings.home / 'admin.key'}): {key}")
    elif not keys.any_working():
        raise PermissionDenied(
            f"refusing to listen on {host} while no API key exists: run `modelwright keys create --scope admin` "
            "first, or set MODELWRIGHT_ADMIN_KEY"
        )
    database.dispose()


def _follow_supervisor() -> None:
    """Under `modelwright up`, end when it ends."""
    if os.environ.get("MODELWRIGHT_SUPERVISED"):
        die_with_parent()
