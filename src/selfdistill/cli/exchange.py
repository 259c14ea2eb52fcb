"""export, import, push: take results to another machine, or to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from selfdistill.artifacts.store import Artifact, locate
from selfdistill.cli.console import RESULTS, ConfigFile, console, in_project, workspace
from selfdistill.cli.maintenance import find_artifact
from selfdistill.plan.subjects import artifact_ids
from selfdistill.schema.errors import UserError

Name = Annotated[str, typer.Argument(help="Experiment, target, or key or path of an artifact.")]


def register(app: typer.Typer) -> None:
    app.command("export", rich_help_panel=RESULTS)(in_project(export_archive))
    app.command("import", rich_help_panel=RESULTS)(in_project(import_archive))
    app.command(rich_help_panel=RESULTS)(in_project(push))


def export_archive(
    name: Name,
    out: Annotated[Path, typer.Argument(help="Archive to write, such as study.tar.zst.")],
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="Leave out the weights of models.")
    ] = False,
    without_rollouts: Annotated[bool, typer.Option("--without-rollouts", help="Leave out completions.")] = False,
    configfile: ConfigFile = None,
) -> None:
    """Write finished results with everything upstream, their tables and the workflow to one archive (an RO-Crate)."""
    from selfdistill.exchange import archive, crate
    from selfdistill.exchange.selection import Selection

    if out.is_dir():
        raise UserError(f"{out} is a folder. Name a file, such as {out / 'study.tar.zst'}.")
    project = workspace(configfile)
    subjects = [Artifact.open(locate(identity, project.root)) for identity in artifact_ids(project, name)]
    chosen = Selection.of(subjects, without_weights=without_weights, without_rollouts=without_rollouts)
    count = archive.write(chosen, out, crate.metadata(chosen, name))
    left = f"; {len(chosen.left_out)} files stay here" if chosen.left_out else ""
    console.print(
        f"{out}: {len(chosen.artifacts)} artifacts, {len(chosen.targets)} tables, {count} files, "
        f"{out.stat().st_size / 1e6:.1f} MB{left}.",
        soft_wrap=True,
    )


def import_archive(path: Annotated[Path, typer.Argument(help="Archive that `selfdistill export` wrote.")]) -> None:
    """Bring the results of an archive into this project; every digest is checked first."""
    from selfdistill.exchange import archive

    done = archive.read(path)
    console.print(
        f"{len(done.added)} artifacts imported, {len(done.present)} were here already, {len(done.targets)} tables.",
        soft_wrap=True,
    )
    for target in done.kept:
        console.print(f"kept {target}: it has other content here.", markup=False, soft_wrap=True)
    if done.left_out:
        console.print(
            f"{len(done.left_out)} files were left out of the archive, so `selfdistill verify` names them as missing, "
            f"and what needs them cannot be made here. The first: {done.left_out[0]}",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def push(
    key: Annotated[str, typer.Argument(help="Key or path of an artifact: a model, a training, or any table.")],
    repo: Annotated[str, typer.Argument(help="Repository on the hub: OWNER/NAME.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write (default: results/hub/NAME).")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Which checkpoint of a training; the last one if left out.")] = None,
    form: Annotated[
        Literal["parquet", "saved"], typer.Option(help="Tables: parquet files, or what datasets.load_from_disk reads.")
    ] = "parquet",
) -> None:
    """Write a model or a table for the Hugging Face hub, with a card from its lineage, and print how to upload it.

    Nothing is uploaded.
    """
    from selfdistill.exchange import hub

    artifact, out = find_artifact(key), out or Path("results/hub") / repo.rpartition("/")[2]
    if not artifact.is_sealed:
        raise UserError(f"{artifact.name} is not finished.")
    if out.exists():
        raise UserError(f"{out} exists. Remove it, or name another folder: --out DIR.")
    kind = hub.kind_of(artifact)
    if kind == "model":
        hub.write_model(artifact, step, out, repo)
    else:
        hub.write_dataset(artifact, out, repo, form)
    console.print(f"{out} holds the {kind} and its card. Look at it, then:", soft_wrap=True, markup=False)
    console.print(f"    {hub.upload_command(out, repo, kind)}", soft_wrap=True, markup=False)
