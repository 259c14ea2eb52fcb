"""verify, lock: check the store, record code changes."""

from __future__ import annotations

from typing import Annotated

import typer

from selfdistill.artifacts.code_lock import check as check_lock
from selfdistill.artifacts.code_lock import update as update_lock
from selfdistill.artifacts.pins import check_pins
from selfdistill.artifacts.store import Artifact, artifact_folders, named
from selfdistill.artifacts.verification import is_finished
from selfdistill.artifacts.verification import verify as check
from selfdistill.cli.console import RESULTS, console, in_project
from selfdistill.plan.made_views import check_views
from selfdistill.plan.used_configs import check_used_configs
from selfdistill.plan.workspace import PLANS
from selfdistill.schema.errors import UserError


def register(app: typer.Typer) -> None:
    for command in (verify, lock):
        app.command(rich_help_panel=RESULTS)(in_project(command))


def find_artifacts(names: list[str]) -> list[Artifact]:
    """The artifacts of these names (see `named`); UserError for a name that no artifact has."""
    found = {name: named(name) for name in names}
    for name, matches in found.items():
        if not matches:
            raise UserError(
                f"there is no artifact `{name}`. Give a key, stage/slug-key, or a path. "
                "List keys with: selfdistill where EXPERIMENT"
            )
    return [artifact for matches in found.values() for artifact in matches]


def find_artifact(name: str) -> Artifact:
    """The one artifact of a name; UserError where none or several have it."""
    found = find_artifacts([name])
    if len(found) > 1:
        listed = ", ".join(artifact.id for artifact in found)
        raise UserError(f"`{name}` is the key of {len(found)} artifacts: {listed}. Name one of them.")
    return found[0]


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Artifacts (default: all sealed ones).")] = None,
) -> None:
    """Hash the payloads again and compare them with the manifests. The exit code is 1 if anything differs."""
    folders = [a.folder for a in find_artifacts(names)] if names else artifact_folders()
    # Without its spec a folder is no artifact to the other commands, so it is named even where nothing is finished.
    chosen = [f for f in folders if is_finished(f) or not (f / "spec.json").is_file()]
    found = [check(folder) for folder in chosen]
    problems = [problem for findings in found for problem in findings.problems]
    problems += [] if names else [*check_views(PLANS), *check_pins(), *check_used_configs()]
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    unchecked = sum(bool(findings.unchecked) for findings in found)
    if unchecked:
        console.print(f"{unchecked} were made before manifests and provenance had digests: these two were not checked.")
    console.print(f"{len(chosen)} artifacts verified, {len(problems)} problems.")
    if problems:
        raise typer.Exit(1)


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
