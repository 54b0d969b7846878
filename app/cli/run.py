"""The single processes: gateway, workers, migrations. `modelwright up` starts the same commands."""

import os
import signal
import socket
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
Processes = Annotated[int | None, typer.Option(help="Processes on the port. Unset: the setting.", min=1, max=64)]
Listener = Annotated[int | None, typer.Option(hidden=True, help="Descriptor of a socket that a parent process shares.")]

_NICENESS = {"inference": 10, "trainer": 15}
"""Beside other work on their cores. A gateway runs for 0.3 ms where a batch runs for 30: while it had to wait for its
turn, 99 % of refusals in a storm took up to 58 ms, and take 11 so. A training can wait for predictions."""


def gateway(
    host: Host = "127.0.0.1", port: Port = 8000, processes: Processes = None, listener: Listener = None
) -> None:
    """Run the HTTP gateway against the configured servers."""
    import uvicorn

    from app.cli.gateways import GatewayProcesses
    from app.cli.server import DrainingServer

    settings = connected_settings()
    if listener is None:
        _check_database(settings)
        _check_keys(settings, host)
        _follow_supervisor()
    else:
        die_with_parent(signal.SIGINT)
    configure_logging(settings, "gateway")
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        host=host,
        port=port,
        loop="uvloop",
        http="app.cli.protocol:GatewayProtocol",
        access_log=False,  # the request log has ids and times
        log_config=None,
        timeout_graceful_shutdown=10,
        server_header=False,
        proxy_headers=False,  # nothing here asks who called but by the key
    )
    count = processes or settings.gateway_processes
    if listener is None and count > 1:
        raise typer.Exit(GatewayProcesses(config.bind_socket(), count).run())
    shared = None if listener is None else socket.socket(fileno=listener)
    DrainingServer(config, settings.drain_seconds, shared).run()


def worker(
    role: Annotated[Literal["trainer", "inference"], typer.Argument(help="What the worker does.")],
) -> None:
    """Run a worker; start as many as you like, on any host that sees the same servers and store."""
    settings = connected_settings()
    _follow_supervisor()
    os.nice(_NICENESS[role])
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
