"""What the commands share: output for terminals and pipes, the --configfile option, the project."""

from __future__ import annotations

import csv
import functools
import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from selfdistill.plan.config_files import ConfigFiles
from selfdistill.plan.settings import CONFIG_FILE
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import UserError
from selfdistill.schema.yaml_file import read_yaml

Arguments, Result = ParamSpec("Arguments"), TypeVar("Result")

#: Headings of `selfdistill --help`.
RESULTS, MACHINE, OWN_DATA = "Results and their artifacts", "Machine and models", "Data of your own"

ConfigFile = Annotated[
    list[str] | None,
    typer.Option("--configfile", metavar="FILE", help="Settings merged over config/config.yaml; may be repeated."),
]

#: Without a terminal nothing is wrapped, so that names and keys can be piped to other programs.
console = Console(width=None if sys.stdout.isatty() else 400, soft_wrap=not sys.stdout.isatty(), highlight=False)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def escape_what_the_terminal_lacks() -> None:
    """Print a character that the terminal's encoding does not have as an escape (`\\u2113`), not as a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def csv_writer(columns: Sequence[str]) -> csv.DictWriter[str]:
    """CSV on standard output. Files and pipes get UTF-8 whatever the locale, since CSV is read back as UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    return csv.DictWriter(sys.stdout, columns, lineterminator="\n")


def in_project(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A command that works on a project: elsewhere it would find nothing, and say that all is well."""

    @functools.wraps(command)
    def checked(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        require_project()
        return command(*arguments, **options)

    return checked


def require_project() -> None:
    if not Path(CONFIG_FILE).is_file():
        raise UserError(
            f"{Path.cwd()} is not a project: it has no {CONFIG_FILE}. Change to the top of a checkout and try again."
        )


def workspace(configfiles: Sequence[str] | None = None, values: Mapping[str, Any] | None = None) -> Workspace:
    """The project; other files, and then values, are merged over config/config.yaml, as Snakemake does."""
    require_project()
    overlays = [path for path in configfiles or () if path != CONFIG_FILE]
    for path in overlays:
        read_yaml(Path(path))
    files = ConfigFiles(overlays, values)
    return Workspace(files.merged(), files=files)
