"""The artifacts that a name on the command line stands for.

A name is a key, a path, an experiment, a target (`results/ood/toy_sdpo.csv`), or a line of a table
(`results/ood/toy_sdpo.csv:3`). A file that was copied elsewhere is found by its digest.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selfdistill.artifacts.lineage import closure
from selfdistill.artifacts.store import Artifact, all_artifacts, id_of, named
from selfdistill.files import sha256_file
from selfdistill.plan.graph import Node
from selfdistill.plan.made_views import recorded_outputs
from selfdistill.plan.views import target_of, view_names
from selfdistill.plan.workspace import PLANS, Workspace, plan_path, read_plan
from selfdistill.schema.errors import UserError, nearest

#: Columns of tables with names of artifacts end like this; several names are joined with `;`.
_ARTIFACT_COLUMN = "_artifact"
_LINE = re.compile(r"(?P<file>.+\.csv):(?P<line>[0-9]+)")


def artifact_ids(project: Workspace, name: str) -> list[str]:
    """Ids (`stage/key`) of the artifacts that a name stands for; UserError for an unknown name."""
    path = Path(name)
    found = named(name, project.root) or _around(path, project.root)
    if found:
        return [artifact.id for artifact in found]
    line = _LINE.fullmatch(name)
    if line or (path.suffix == ".csv" and path.is_file()):
        return _in_table(Path(line["file"]), int(line["line"])) if line else _in_table(path)
    behind = _plan_of_file(path)
    if behind:
        return [id_of(artifact) for artifact in read_plan(behind)["artifacts"]]
    target = _view_of(project, name)
    if target and plan_path(*target).is_file():
        return [id_of(artifact) for artifact in read_plan(plan_path(*target))["artifacts"]]
    if target is None and path.exists():
        return _with_content(path, project.root)
    return [node.id for node in nodes_of(project, name)]


def nodes_of(project: Workspace, name: str) -> list[Node]:
    """Planned artifacts that an experiment or a target shows."""
    found = _view_of(project, name)
    if found is None:
        names = view_names(project.planner)
        known = {*project.planner.experiments, *names["report"], *(f"{v}/{n}" for v, ns in names.items() for n in ns)}
        raise UserError(f"`{name}` is neither an artifact, an experiment nor a target.{nearest(_short(name), known)}")
    return list(project.plan(*found).nodes.values())


def nodes_behind(project: Workspace, name: str) -> list[Node]:
    """As `nodes_of`, with everything that they are made from, upstream first."""
    return list(closure(nodes_of(project, name)))


@dataclass(frozen=True)
class Shown:
    """What a file of a view was made from: its plan, and those of the asked artifacts that it shows."""

    plan: Path
    artifacts: set[str]


def targets_showing(artifacts: Iterable[str]) -> dict[Path, Shown]:
    """Files of views on disk that show any of these artifacts (`stage/slug-key`)."""
    wanted = set(artifacts)
    shown = {plan: wanted & set(read_plan(plan)["artifacts"]) for plan in _plans(PLANS)}
    return {file: Shown(plan, shown[plan]) for file, plan in shown_files() if shown[plan] and file.is_file()}


def shown_files(plans: Path = PLANS) -> Iterator[tuple[Path, Path]]:
    """(file, its plan) of every table, page and figure that was planned or is on record, whether or not it is there."""
    for plan in _plans(plans):
        target = Path(target_of(*plan.parent.relative_to(plans).parts))
        yield from ((file, plan) for file in dict.fromkeys([target, *recorded_outputs(plan)]))


def _plans(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/plan.json"))


def _plan_of_file(path: Path) -> Path | None:
    """The plan that a figure, or another file that is on record, was made from."""
    wanted = path.resolve()
    return next((plan for plan in _plans(PLANS) for made in recorded_outputs(plan) if made.resolve() == wanted), None)


def _view_of(project: Workspace, name: str) -> tuple[str, str] | None:
    """View and name of an experiment, a target or `view/name`; None for anything else."""
    short, names = _short(name), view_names(project.planner)
    if short in names["report"]:
        return "report", short
    if short in project.planner.experiments:
        return "ood", short
    targets = {_short(target_of(view, shown)): (view, shown) for view, known in names.items() for shown in known}
    return targets.get(short)


def _short(name: str) -> str:
    return name.removeprefix("results/").removesuffix(".csv").removesuffix(".html")


def _around(path: Path, root: Path) -> list[Artifact]:
    """The artifact whose folder a path is, or lies in; UserError for a folder of many artifacts."""
    path, root = path.resolve(), root.resolve()
    if path.is_dir() and (root.is_relative_to(path) or path.parent == root):
        raise UserError(f"{path} holds many artifacts: name one of them.")
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return named("/".join(parts[:2]), root) if len(parts) >= 2 else []


def _in_table(path: Path, line: int | None = None) -> list[str]:
    """Artifacts behind a table, or behind one line of it; the header is line 1, as editors count."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    if line is not None:
        if not 2 <= line <= len(rows) + 1:
            raise UserError(f"{path} has no row in line {line}: its rows are lines 2 to {len(rows) + 1}.")
        rows = [rows[line - 2]]
    ids = dict.fromkeys(id_of(name) for row in rows for name in _names_in(row))
    if not ids:
        raise UserError(f"{path} names no artifacts: it has no column that ends in {_ARTIFACT_COLUMN}. Make it again.")
    return list(ids)


def _names_in(row: dict[str, str]) -> Iterator[str]:
    for column, cell in row.items():
        if column and column.endswith(_ARTIFACT_COLUMN) and cell:
            yield from cell.split(";")


def _with_content(path: Path, root: Path) -> list[str]:
    """Artifacts that contain a copy of a file; of a folder, its largest file (the weights) decides."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} is an empty folder.")
    file = max(files, key=lambda f: f.stat().st_size)
    size = file.stat().st_size
    same_size = {
        artifact.id: entries
        for artifact in all_artifacts(root)
        if (entries := [entry for entry in _files(artifact) if entry["size"] == size])
    }
    digest = sha256_file(file) if same_size else ""
    found = [identity for identity, entries in same_size.items() if any(e["sha256"] == digest for e in entries)]
    if not found:
        raise UserError(f"no finished artifact here contains a file with the content of {file}.")
    return found


def _files(artifact: Artifact) -> list[dict]:
    try:
        return list(artifact.manifest["files"].values()) if artifact.is_sealed else []
    except UserError:
        return []
