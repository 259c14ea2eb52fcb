"""where, explain, status: the artifacts behind a name, why something would be computed, and how far a study is."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from selfdistill.artifacts.continuation import start_of
from selfdistill.artifacts.lineage import closure, last_attempt
from selfdistill.artifacts.lineage_graph import state_of
from selfdistill.artifacts.store import Artifact, all_artifacts, named
from selfdistill.artifacts.trash import Removal, in_trash, is_only_planned, removals
from selfdistill.artifacts.weight import size_of, weigh
from selfdistill.cli.console import RESULTS, ConfigFile, console, in_project, show_table, workspace
from selfdistill.plan.diff import Change, explain
from selfdistill.plan.inheritance import shared_entries
from selfdistill.plan.subjects import nodes_behind
from selfdistill.schema.errors import UserError


def register(app: typer.Typer) -> None:
    for command in (where, explain_command, status):
        app.command(name=command.__name__.removesuffix("_command"), rich_help_panel=RESULTS)(in_project(command))


def where(
    name: Annotated[str, typer.Argument(help="Experiment, target, or key of an artifact.")],
    configfile: ConfigFile = None,
) -> None:
    """List the artifacts behind a name, upstream first."""
    project = workspace(configfile)
    artifacts = list(closure(named(name, project.root))) or [
        Artifact(node.folder(project.root)) for node in nodes_behind(project, name)
    ]
    show_table(("stage", "artifact", "state"), [(a.stage, a.folder, state_of(a)) for a in artifacts])


def explain_command(
    name: Annotated[str, typer.Argument(help="Experiment or target.")], configfile: ConfigFile = None
) -> None:
    """Explain what would be computed and why: the difference from the nearest existing artifact, field by field."""
    project = workspace(configfile)
    nodes = nodes_behind(project, name)
    explanations = explain(nodes, project.root)
    trashed = in_trash((entry.node.name for entry in explanations), project.root)
    console.print(f"{name}: {len(nodes)} artifacts, {len(nodes) - len(explanations)} sealed.")
    if not explanations:
        console.print("Nothing would be computed.")
    for entry, others in shared_entries(project.planner.config, name).items():
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        console.print(f"An edit of `{entry}` also changes {shown}.", soft_wrap=True, markup=False)
    for entry in explanations:
        console.print(f"\n[bold]{entry.node.name}[/bold]", soft_wrap=True)
        was_there = _was_there(Artifact(entry.node.folder(project.root)), trashed.get(entry.node.name))
        if was_there:
            console.print(f"  {was_there}", soft_wrap=True, markup=False)
            continue
        if entry.nearest is None:
            console.print("  is new: no artifact of this name exists.")
            continue
        console.print(f"  differs from {entry.nearest.name}:", soft_wrap=True)
        for change in entry.changes:
            console.print(f"  {_line(change)}", soft_wrap=True, markup=False)
        start = start_of(entry.node.frozen_spec, project.root)
        if start:
            console.print(f"  {start}", soft_wrap=True, markup=False)


def _was_there(artifact: Artifact, removal: Removal | None) -> str:
    """That a result existed and was removed, when, and how to get it back; empty if it never existed."""
    attempt = last_attempt(artifact.folder)
    made = f"was there (finished {attempt['finished'][:16]})" if attempt.get("finished") else "was there"
    if removal is not None:
        back = f"selfdistill undo {removal.name}"
        return f"{made}, until {removal.command} removed it on {removal.when:%Y-%m-%d %H:%M}. To put it back: {back}"
    return f"{made}, until it was discarded on {attempt['discarded'][:16]}." if attempt.get("discarded") else ""


def _line(change: Change) -> str:
    because = "  (explained above)" if change.field.startswith("inputs.") else ""
    return f"{change.field.removeprefix('params.')}: {change.existing} -> {change.planned}{because}"


def status(configfile: ConfigFile = None) -> None:
    """Show the progress of every experiment, and what the store holds."""
    project = workspace(configfile)
    rows = []
    for name in sorted(project.planner.experiments):
        try:
            nodes = nodes_behind(project, name)
        except UserError as error:
            rows.append((name, "-", "-", str(error).split(".")[0]))
            continue
        sealed = sum(Artifact(node.folder(project.root)).is_sealed for node in nodes)
        trained = [n for n in nodes if n.stage == "train"]
        done = sum(Artifact(n.folder(project.root)).is_sealed for n in trained)
        rows.append((name, f"{sealed}/{len(nodes)}", f"{done}/{len(trained)}", ""))
    show_table(("experiment", "artifacts", "runs", "note"), rows)
    artifacts = all_artifacts(project.root)
    states = Counter((a.stage, state_of(a)) for a in artifacts if not is_only_planned(a.folder))
    console.print()
    show_table(("stage", "state", "artifacts"), [(*key, n) for key, n in sorted(states.items())])
    console.print(f"{len(artifacts) - states.total()} more are planned, with nothing computed yet.\n")
    weights = [(stage, kind, size) for (stage, kind), size in weigh(artifacts).items()]
    weights += [("trash", entry.command, size_of(entry.folder)) for entry in removals(project.root)]
    show_table(("stage", "content", "MB"), [(s, kind, f"{n / 1e6:.1f}") for s, kind, n in sorted(weights)])
