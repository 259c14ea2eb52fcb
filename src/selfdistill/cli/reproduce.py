"""reproduce: make recorded artifacts again in a scratch folder, and say what differs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from selfdistill.artifacts.lineage import closure, last_attempt
from selfdistill.artifacts.store import Artifact, locate
from selfdistill.cli.console import RESULTS, ConfigFile, console, in_project, workspace
from selfdistill.plan.subjects import artifact_ids
from selfdistill.reproduction.comparison import Difference, circumstances, compare, is_on_gpu
from selfdistill.reproduction.scratch import Code, Scratch
from selfdistill.schema.errors import UserError

#: Values that are shown of an artifact that differs.
_SHOWN = 5


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=RESULTS)(in_project(reproduce))


def reproduce(
    name: Annotated[str, typer.Argument(help="Key or path of an artifact, experiment, or target.")],
    scratch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to work (default: results/reproduced/NAME).")
    ] = None,
    present_code: Annotated[
        bool, typer.Option("--present-code", help="Run the code of this folder, not that of the recorded commit.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest relative difference of a metric that passes on GPUs.")
    ] = 0.05,
    profile: Annotated[str, typer.Option(help="Profile of Snakemake.")] = "local",
    configfile: ConfigFile = None,
) -> None:
    """Make finished results again from their specs, and compare: equal bytes on CPUs, close metrics on GPUs.

    Everything upstream is made again, too, by Snakemake in a scratch folder. Nothing here is changed.
    The exit code is 1 if the results differ.
    """
    project = workspace(configfile)
    subjects = [Artifact.open(locate(identity, project.root)) for identity in artifact_ids(project, name)]
    unfinished = [artifact.name for artifact in subjects if not artifact.is_sealed]
    if unfinished:
        raise UserError(f"{unfinished[0]} is not finished, so there is nothing to compare with.")
    chain = list(closure(subjects))
    code = Code.present() if present_code else Code.recorded(max(subjects, key=_finished))
    folder = Scratch(scratch or Path("results/reproduced") / name.strip("/").replace("/", "-"))
    console.print(f"Making {len(chain)} artifacts again in {folder.folder} with {code.described}.", soft_wrap=True)
    folder.prepare(code, chain)
    if folder.run(subjects, ["--profile", profile]):
        raise UserError(f"Snakemake failed in {folder.folder}; its messages are above. To continue: the same command.")
    differences = [compare(artifact, folder.artifact(artifact)) for artifact in chain]
    _report(differences, chain, folder)
    if not all(_passes(d, a, folder.artifact(a), tolerance) for d, a in zip(differences, chain, strict=True)):
        raise typer.Exit(1)


def _finished(artifact: Artifact) -> str:
    return last_attempt(artifact.folder).get("finished") or ""


def _passes(difference: Difference, recorded: Artifact, again: Artifact, tolerance: float) -> bool:
    """On CPUs bytes and values are equal; on GPUs values are within the tolerance."""
    if is_on_gpu(recorded, again):
        return difference.largest <= tolerance
    return difference.is_equal


def _report(differences: list[Difference], chain: list[Artifact], folder: Scratch) -> None:
    different = [difference for difference in differences if not difference.is_equal]
    if not different:
        console.print(f"{len(chain)} artifacts are equal, byte for byte (metrics.jsonl: without seconds and memory).")
    else:
        console.print(f"{len(different)} of {len(chain)} artifacts differ. The first one, upstream first:")
    for difference in different:
        console.print(f"\n{difference.name}", markup=False, soft_wrap=True)
        for line in difference.files[:_SHOWN]:
            console.print(f"  {line}", markup=False, soft_wrap=True)
        for value, (old, new) in list(difference.values.items())[:_SHOWN]:
            console.print(f"  {value}: {old} -> {new}", markup=False, soft_wrap=True)
        left = len(difference.files[_SHOWN:]) + len(list(difference.values)[_SHOWN:])
        if left:
            console.print(f"  and {left} more; largest relative difference of a value: {difference.largest:.3g}")
    lines = Counter(line for artifact in chain for line in circumstances(artifact, folder.artifact(artifact)))
    console.print("\nWhat else differs between the two:" if lines else "\nCode, libraries, hardware, data: the same.")
    for line, count in lines.items():
        console.print(f"  {line} ({count} artifact{'s' * (count > 1)})", markup=False, soft_wrap=True)
