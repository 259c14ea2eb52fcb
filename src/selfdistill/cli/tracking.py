"""track: update the MLflow store from the artifacts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from selfdistill.cli.console import RESULTS, in_project


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=RESULTS)(in_project(track))


def track(
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing if nothing changed.")] = False,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Only warn if the store cannot be written.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Compare every run, even if no file changed since the last call.")
    ] = False,
) -> None:
    """Write new artifacts, metrics and checkpoints to MLflow; runs that are already there stay.

    The store is results/mlflow/mlflow.db, or the one that MLFLOW_TRACKING_URI names. It is an index: it can be deleted
    and written again from the artifacts.
    """
    from selfdistill.tracking import track as sync

    try:
        report = sync(quiet=quiet, everything=everything)
    except Exception as error:
        if not best_effort:
            raise
        print(f"warning: MLflow was not updated: {error or type(error).__name__}", file=sys.stderr)
        return
    if report.problems and not best_effort:
        raise typer.Exit(1)
