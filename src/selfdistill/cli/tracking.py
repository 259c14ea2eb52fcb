"""track, register: update the MLflow store from the artifacts, and put checkpoints into its model registry."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from selfdistill.cli.console import RESULTS, in_project
from selfdistill.cli.maintenance import find_artifact


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=RESULTS)(in_project(track))
    app.command("register", rich_help_panel=RESULTS)(in_project(register_checkpoint))


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


def register_checkpoint(
    key: Annotated[str, typer.Argument(help="Key or path of a training, or of a base model.")],
    name: Annotated[str, typer.Argument(help="Name in the registry, such as toy-sdpo.")],
    step: Annotated[int | None, typer.Option(help="Which checkpoint; the last one if left out.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Alias, such as best; may be repeated.")] = None,
) -> None:
    """Register a checkpoint in MLflow's model registry. The registry refers to it; no weights are copied."""
    from selfdistill.tracking import track as sync
    from selfdistill.tracking.registry import register_checkpoint as register_in_store

    artifact = find_artifact(key)
    sync(quiet=True)
    print(register_in_store(artifact, name, step=step, aliases=alias or ()))
