"""doctor: check this machine, or show what each rule would request from Slurm."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from selfdistill.cli import checks, slurm_checks
from selfdistill.cli.checks import FAIL, WARN, Check
from selfdistill.cli.console import MACHINE, ConfigFile, console, in_project, show_table, workspace
from selfdistill.cli.requests import requests
from selfdistill.plan.subjects import nodes_behind
from selfdistill.schema.errors import UserError

_COLOUR = {"ok": "green", WARN: "yellow", FAIL: "red"}


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=MACHINE)(in_project(doctor))


def doctor(
    targets: Annotated[
        list[str] | None, typer.Argument(help="Experiments or targets for --resources (default: all experiments).")
    ] = None,
    resources: Annotated[
        bool, typer.Option("--resources", help="Show instead what each rule would request from Slurm.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as failures.")] = False,
    configfile: ConfigFile = None,
) -> None:
    """Check this machine, one line per check. The exit code is 1 if a check fails; warnings do not count."""
    if resources:
        _show_requests(targets or [], configfile)
        return
    found: list[Check] = []
    for check in _all_checks(configfile):
        found.append(check)
        # The text may contain brackets (accounts, folders), so only the state is rich markup.
        console.print(f"[{_COLOUR[check.state]}]{check.state:4}[/]  {check.name:12}", end="  ")
        console.print(check.text, markup=False, soft_wrap=True)
    bad = {FAIL, WARN} if strict else {FAIL}
    if any(check.state in bad for check in found):
        raise typer.Exit(1)


def _all_checks(configfile: list[str] | None) -> Iterator[Check]:
    """Every check, most basic first. A check that raises counts as failed; the others still run."""
    named: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", checks.python),
        ("torch", checks.torch),
        ("gpus", checks.gpus),
        ("attention", checks.attention),
        ("compiler", checks.compiler),
        ("vllm", lambda: checks.vllm(configfile)),
        ("disk", checks.disk),
        *slurm_checks.CHECKS,
        ("mlflow", checks.mlflow),
        ("assets", lambda: checks.assets(configfile)),
        ("sandbox", checks.sandbox),
    ]
    for name, check in named:
        try:
            yield from check()
        except UserError as error:
            yield Check(name, FAIL, str(error))
        except (OSError, ImportError, subprocess.SubprocessError, ValueError) as error:
            yield Check(name, FAIL, f"{type(error).__name__}: {error}")


def _show_requests(targets: list[str], configfile: list[str] | None) -> None:
    project = workspace(configfile)
    nodes, left_out = [], []
    for target in targets or sorted(project.planner.experiments):
        try:
            nodes += nodes_behind(project, target)
        except UserError as error:
            if targets:
                raise
            left_out.append(f"{target}: {error}")
    show_table(("rule", "model", "jobs", "sbatch"), requests(project.runtime, nodes))
    for line in left_out:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
