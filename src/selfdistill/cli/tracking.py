"""track: bring the MLflow store up to date with the artifacts."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(track)


def track(quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing when nothing changed.")] = False) -> None:
    """Write every new artifact, metric and checkpoint to MLflow; what is there already stays."""
    from selfdistill.tracking import track as sync

    sync(quiet=quiet)
