"""`modelwright keys`: the key's text is shown once, by `create`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from app.auth.keys import KeyService, Quotas
from app.cli.environment import connected_settings
from app.registry.migrate import upgrade
from app.registry.session import Database

cli = typer.Typer(no_args_is_help=True)
QueuedJobs = Annotated[int | None, typer.Option(help="Unfinished jobs it may have. Unset: the setting.")]
StoredBytes = Annotated[int | None, typer.Option(help="Bytes of files it may keep. Unset: the setting.")]
Trainings = Annotated[int | None, typer.Option(help="Jobs of it that may run at once. Unset: the setting.")]


@contextmanager
def _service() -> Iterator[KeyService]:
    settings = connected_settings()
    assert settings.database_url
    upgrade(settings.database_url)  # the first key is often made before the first start
    database = Database(settings.database_url)
    try:
        yield KeyService(database)
    finally:
        database.dispose()


@cli.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    scope: Annotated[list[str] | None, typer.Option(help="predict, train, read or admin; repeatable.")] = None,
    *,
    expires_days: Annotated[float | None, typer.Option(help="Days until it stops working.", min=0.0)] = None,
    max_queued_jobs: QueuedJobs = None,
    max_stored_bytes: StoredBytes = None,
    max_trainings: Trainings = None,
) -> None:
    """Make a key and print it, the only time it is shown."""
    quotas = Quotas(max_queued_jobs, max_stored_bytes, max_trainings)
    with _service() as keys:
        typer.echo(keys.create(name, scope or ["predict"], expires_days, quotas))


@cli.command()
def update(
    key_id: Annotated[str, typer.Argument(help="The id from `modelwright keys list`.")],
    max_queued_jobs: QueuedJobs = None,
    max_stored_bytes: StoredBytes = None,
    max_trainings: Trainings = None,
    reset: Annotated[bool, typer.Option("--reset", help="First put all quotas back to the settings.")] = False,
) -> None:
    """Set quotas of a key; they count from its next call."""
    with _service() as keys:
        keys.update(key_id, Quotas(max_queued_jobs, max_stored_bytes, max_trainings), reset=reset)
    typer.echo(f"updated {key_id}")


@cli.command("list")
def list_keys() -> None:
    """Show all keys, never their text; a quota of `-` is the setting's."""
    quotas = ("queued jobs", "stored bytes", "trainings")
    table = Table(Column("id", no_wrap=True), "name", "scopes", "created", "expires", "revoked", *quotas)
    with _service() as keys:
        rows = keys.all()
    for row in rows:
        times = [
            t.isoformat(timespec="seconds") if t else "-" for t in (row.created_at, row.expires_at, row.revoked_at)
        ]
        own = (row.max_queued_jobs, row.max_stored_bytes, row.max_trainings)
        limits = [f"{n:,}" if n is not None else "-" for n in own]
        table.add_row(row.id, row.name, ", ".join(row.scopes), *times, *limits)
    Console().print(table)


@cli.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id from `modelwright keys list`.")]) -> None:
    """Stop a key from working, everywhere within a second."""
    with _service() as keys:
        keys.revoke(key_id)
    typer.echo(f"revoked {key_id}")
