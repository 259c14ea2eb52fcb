"""assets fetch | check | add: bring external files to this machine, and verify them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.console import console, show_table

app = typer.Typer(no_args_is_help=True)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name in config/assets.lock.yaml.")],
    files: Annotated[list[str] | None, typer.Argument(help="Only these files of it.")] = None,
) -> None:
    """Download an asset at its pinned revision (a GGUF model is converted) and record its digests."""
    from selfdistill.assets import Assets
    from selfdistill.assets import fetch as fetch_asset

    for path in fetch_asset(Assets.here(), name, files or ()):
        console.print(str(path))


@app.command()
def check(name: Annotated[str | None, typer.Argument(help="One asset; none means all.")] = None) -> None:
    """Say which assets are here, and whether their digests are right."""
    from selfdistill.assets import Assets
    from selfdistill.assets import check as check_asset

    assets = Assets.here()
    names = [name] if name else sorted({*assets.lock.assets, *assets.lock.local})
    rows = [(each, file, state) for each in names for file, state in check_asset(assets, each).items()]
    show_table(("asset", "file", "state"), rows)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A name for it.")],
    path: Annotated[Path, typer.Argument(help="A file of your own.")],
) -> None:
    """Record a file of your own, with its sha256, in config/assets.local.yaml."""
    from selfdistill.assets import Assets, add_local

    added = add_local(Assets.here(), name, path)
    console.print(f"{name}: {added.path} {added.sha256}")
