"""`modelwright`: one file a command group. Heavy imports wait until a command needs them."""

import sys

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from app.cli import doctor, keys, run, up
from app.core.errors import ModelwrightError

cli = typer.Typer(
    help="Fine-tune, compress and serve transformer models on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.command()(up.up)
cli.command()(run.gateway)
cli.command()(run.worker)
cli.command()(run.migrate)
cli.add_typer(keys.cli, name="keys", help="Make, list and revoke API keys.")
cli.command()(doctor.doctor)


def main() -> None:
    """Entry point: our own errors are a sentence and exit code 1, not a traceback."""
    try:
        cli()
    except ValidationError as exc:
        for found in exc.errors():
            name = f"MODELWRIGHT_{'_'.join(str(p) for p in found['loc'])}".upper()
            Console(stderr=True).print(
                f"[red]error:[/red] {name}: {found['msg']}, not {found['input']!r}", soft_wrap=True
            )
        sys.exit(1)
    except ModelwrightError as exc:
        Console(stderr=True).print(f"[red]error:[/red] {escape(exc.message)}", highlight=False, soft_wrap=True)
        sys.exit(1)
