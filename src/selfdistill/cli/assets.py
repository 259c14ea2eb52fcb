"""assets add | fetch | check: register external files, download them, and verify them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from selfdistill.cli.console import console, in_project, show_table
from selfdistill.schema.assets import UNRESOLVED, AssetEntry
from selfdistill.schema.errors import UserError, explain_validation

app = typer.Typer(no_args_is_help=True)
#: Beginnings of the states that are no error.
_HARMLESS = ("ok", "missing", "unresolved", "no digests yet")


class Kind(StrEnum):
    dataset = "dataset"
    model = "model"


@app.command()
@in_project
def fetch(
    name: Annotated[str, typer.Argument(help="Name in config/assets.lock.yaml.")],
    files: Annotated[list[str] | None, typer.Argument(help="Only these files of the asset.")] = None,
) -> None:
    """Download an asset at its pinned revision (a GGUF model is converted) and record its digests."""
    from selfdistill.assets import Assets
    from selfdistill.assets import fetch as fetch_asset

    for path in fetch_asset(Assets.here(), name, files or ()):
        console.print(str(path))


@app.command()
@in_project
def check(name: Annotated[str | None, typer.Argument(help="One asset (default: all).")] = None) -> None:
    """Show which assets are on this machine. The exit code is 1 if a digest is wrong. Nothing is downloaded."""
    from selfdistill.assets import Assets
    from selfdistill.assets import check as check_asset

    assets = Assets.here()
    names = [name] if name else sorted({*assets.lock.assets, *assets.lock.local})
    rows = [(each, file, state) for each in names for file, state in check_asset(assets, each).items()]
    show_table(("asset", "file", "state"), rows)
    if any(not state.startswith(_HARMLESS) for _, _, state in rows):
        raise typer.Exit(1)


@app.command()
@in_project
def add(
    name: Annotated[str, typer.Argument(help="Name of the asset.")],
    path: Annotated[Path | None, typer.Argument(help="A file or folder of your own.")] = None,
    hub: Annotated[str | None, typer.Option(help="Instead of a path: OWNER/NAME on the Hugging Face hub.")] = None,
    git: Annotated[str | None, typer.Option(help="Instead of a path: URL of a git repository.")] = None,
    kind: Annotated[Kind, typer.Option(help="What the repository contains.")] = Kind.dataset,
    revision: Annotated[str | None, typer.Option(help="Commit (default: the first fetch pins one).")] = None,
    ref: Annotated[str | None, typer.Option(help="Branch or tag whose commit the first fetch pins.")] = None,
    licence: Annotated[str, typer.Option(help="SPDX identifier.")] = "unknown",
) -> None:
    """Register a file or folder of your own (config/assets.local.yaml), or a repository (config/assets.lock.yaml)."""
    from selfdistill.assets import Assets, add_entry, add_local

    if sum(origin is not None for origin in (path, hub, git)) != 1:
        raise UserError("give exactly one of: a path, --hub OWNER/NAME, --git URL.")
    assets = Assets.here()
    if path is not None:
        added = add_local(assets, name, path)
        console.print(f"{name}: {added.kind} {added.path} {added.sha256}")
        return
    settings = {
        "kind": kind.value,
        "source": "hub" if hub else "git",
        "repo": hub or str(git).removesuffix(".git").rstrip("/").rsplit("/", 1)[-1],
        "url": git,
        "revision": revision or UNRESOLVED,
        "ref": ref,
        "reason": None if revision else "added without a commit",
        "licence": licence,
    }
    try:
        entry = add_entry(assets, name, AssetEntry(**settings))
    except ValidationError as error:
        raise explain_validation(error, AssetEntry, f"assets add {name}") from None
    console.print(f"{name}: {entry.repo} {entry.revision}. To download it: selfdistill assets fetch {name}")
