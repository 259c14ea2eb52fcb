"""track: bring the MLflow store up to date with the artifacts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(track)


def track(
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing when nothing changed.")] = False,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="A store that cannot be written is a warning, not an error.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Compare run by run, even if no file changed since the last call.")
    ] = False,
) -> None:
    """Write every new artifact, metric and checkpoint to MLflow; what is there already stays.

    The store is results/mlflow/mlflow.db, or the one that MLFLOW_TRACKING_URI names. It is an index: it may be deleted.
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
