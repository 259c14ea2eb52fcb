"""verify, discard, gc, lock: check the store, forget results, remove what is unused, record code changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfdistill.artifacts.code_lock import check as check_lock
from selfdistill.artifacts.code_lock import update as update_lock
from selfdistill.artifacts.lineage import closure, descendants
from selfdistill.artifacts.provenance import record_discard
from selfdistill.artifacts.store import Artifact, all_artifacts, artifact_folders, named
from selfdistill.artifacts.verification import is_finished
from selfdistill.artifacts.verification import verify as check
from selfdistill.cli.console import RESULTS, ConfigFile, console, in_project, show_table, workspace
from selfdistill.files import remove
from selfdistill.plan.settings import CONFIG_FILE
from selfdistill.plan.subjects import targets_showing
from selfdistill.plan.views import plan_view, view_names
from selfdistill.plan.workspace import plan_path, read_plan
from selfdistill.schema.errors import UserError

Yes = Annotated[bool, typer.Option("--yes", help="Do it. Without this option the command only says what it would do.")]


def register(app: typer.Typer) -> None:
    for command in (verify, discard, gc, lock):
        app.command(rich_help_panel=RESULTS)(in_project(command))


def find_artifacts(names: list[str]) -> list[Artifact]:
    """The artifacts of these names (see `named`); UserError for a name that no artifact has."""
    found = {name: named(name) for name in names}
    for name, matches in found.items():
        if not matches:
            raise UserError(f"there is no artifact `{name}`. Give a key, stage/slug-key, or a path.")
    return [artifact for matches in found.values() for artifact in matches]


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Artifacts (default: all sealed ones).")] = None,
) -> None:
    """Hash the payloads again and compare them with the manifests. The exit code is 1 if anything differs."""
    folders = [a.folder for a in find_artifacts(names)] if names else artifact_folders()
    # Without its spec a folder is no artifact to the other commands, so it is named even where nothing is finished.
    chosen = [f for f in folders if is_finished(f) or not (f / "spec.json").is_file()]
    found = [check(folder) for folder in chosen]
    problems = [problem for findings in found for problem in findings.problems]
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    unchecked = sum(bool(findings.unchecked) for findings in found)
    if unchecked:
        console.print(f"{unchecked} were made before manifests and provenance had digests: these two were not checked.")
    console.print(f"{len(chosen)} artifacts verified, {len(problems)} problems.")
    if problems:
        raise typer.Exit(1)


def discard(
    names: Annotated[list[str], typer.Argument(help="Artifacts whose results to forget.")],
    dependants: Annotated[bool, typer.Option(help="Also forget what was made from them.")] = True,
    yes: Yes = False,
) -> None:
    """Forget results so that they are computed again (their specs stay)."""
    chosen = find_artifacts(names)
    if dependants:
        chosen += descendants(chosen, all_artifacts())
    chosen = [a for a in {a.name: a for a in chosen}.values() if a.is_sealed or a.seal_path.is_file()]
    for artifact in chosen:
        if yes:
            record_discard(artifact.folder)
            artifact.unseal()
        console.print(f"{'discarded' if yes else 'would discard'} {artifact.name}", soft_wrap=True)
    # While a table is there, Snakemake has no reason to make what is below it.
    for table in targets_showing(artifact.name for artifact in chosen):
        if yes:
            table.unlink()
        console.print(f"{'removed' if yes else 'would remove'} {table}, which shows them", soft_wrap=True)
    if not yes:
        console.print("Nothing was changed. Add --yes to do it.")


def gc(configfile: ConfigFile = CONFIG_FILE, yes: Yes = False) -> None:
    """Remove artifacts that the config does not need. Whatever a kept artifact was made from is kept, too."""
    project = workspace(configfile)
    kept: set[str] = set()
    for view, names in view_names(project.planner).items():
        for name in names:
            try:
                kept |= {node.name for node in closure(plan_view(project.planner, view, name).nodes.values())}
            except UserError:
                # For example an asset that is no longer pinned: keep what the view needed last.
                kept |= last_planned(view, name, project.root)
    removable = [a for a in all_artifacts(project.root) if a.name not in kept]
    rows = [(a.name, f"{_size(a.folder) / 1e6:.1f} MB") for a in removable]
    show_table(("artifact", "size"), rows)
    if yes:
        for artifact in removable:
            remove(artifact.folder)
    verb = "removed" if yes else "would be removed (add --yes)"
    console.print(f"{len(removable)} artifacts {verb}, {len(kept)} needed by the config.")


def last_planned(view: str, name: str, root: Path) -> set[str]:
    """Names of the artifacts in a view's plan on disk, and of everything upstream of them."""
    path = plan_path(view, name)
    planned = [Artifact(root / a) for a in read_plan(path)["artifacts"]] if path.is_file() else []
    return {artifact.name for artifact in closure(a for a in planned if (a.folder / "spec.json").is_file())}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def lock(
    stage: Annotated[str | None, typer.Argument(help="Stage whose code changed.")] = None,
    bump: Annotated[bool, typer.Option("--bump", help="Results change; VERSION was raised.")] = False,
    same_results: Annotated[bool, typer.Option("--same-results", help="Results stay the same.")] = False,
    reason: Annotated[str, typer.Option(help="One sentence, recorded in stages.lock.json.")] = "",
) -> None:
    """Check stages.lock.json, or record the decision about a change of a stage's code."""
    if stage is None:
        problems = check_lock()
        for problem in problems:
            console.print(problem, markup=False, soft_wrap=True)
        if problems:
            raise typer.Exit(1)
        console.print("stages.lock.json is up to date.")
        return
    if bump == same_results:
        raise UserError("give either --bump or --same-results.")
    update_lock(stage, "bump" if bump else "same-results", reason)
    console.print(f"{stage}: recorded.")
