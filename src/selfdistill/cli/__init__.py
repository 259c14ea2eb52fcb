"""The command line: `selfdistill --help` lists the commands. Each module of this folder holds related commands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import selfdistill
from selfdistill.cli import (
    assets,
    cleaning,
    console,
    contamination,
    counting,
    doctor,
    estimate,
    examples,
    exchange,
    grading,
    identity,
    lineage,
    maintenance,
    reading,
    reproduce,
    tracking,
)
from selfdistill.schema.errors import EXIT_USER_ERROR, UserError, disk_problem

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Inspect a study and its artifacts, check this machine, and grade completions of your own.",
)
_MODULES = (
    identity, lineage, reproduce, exchange, reading, maintenance, cleaning, tracking, contamination, counting, doctor,
    estimate, grading,
)  # fmt: skip
for module in _MODULES:
    module.register(app)
app.add_typer(assets.app, name="assets", help="External models and data sets.", rich_help_panel=console.MACHINE)
examples.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"selfdistill {selfdistill.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Entry point. A user's mistake is printed as one line, with exit code 2."""
    console.escape_what_the_terminal_lacks()
    try:
        app()
    except (UserError, OSError) as error:
        message = str(error) if isinstance(error, UserError) else disk_problem(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
