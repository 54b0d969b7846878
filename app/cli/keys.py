"""`modelwright keys`: the key's text is shown once, by `create`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.auth.keys import KeyService
from app.cli.environment import connected_settings
from app.registry.migrate import upgrade
from app.registry.session import Database

cli = typer.Typer(no_args_is_help=True)


def _service() -> KeyService:
    settings = connected_settings()
    assert settings.database_url
    upgrade(settings.database_url)  # the first key is often made before the first start
    return KeyService(Database(settings.database_url))


@cli.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    scope: Annotated[list[str] | None, typer.Option(help="predict, train, read or admin; repeatable.")] = None,
    expires_days: Annotated[float | None, typer.Option(help="Days until it stops working.", min=0.0)] = None,
) -> None:
    """Make a key and print it, the only time it is shown."""
    typer.echo(_service().create(name, scope or ["predict"], expires_days))


@cli.command("list")
def list_keys() -> None:
    """Show all keys, never their text."""
    table = Table("id", "name", "scopes", "created", "expires", "revoked")
    for row in _service().all():
        times = [
            t.isoformat(timespec="seconds") if t else "-" for t in (row.created_at, row.expires_at, row.revoked_at)
        ]
        table.add_row(row.id, row.name, ", ".join(row.scopes), *times)
    Console().print(table)


@cli.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id from `modelwright keys list`.")]) -> None:
    """Stop a key from working, everywhere within a second."""
    _service().revoke(key_id)
    typer.echo(f"revoked {key_id}")
