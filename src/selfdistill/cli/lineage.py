"""lineage: what a result was made from, back to data, base model and code, and what was made from it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from selfdistill.artifacts.continuation import CONTINUED
from selfdistill.artifacts.lineage_graph import Item, Lineage
from selfdistill.cli.console import RESULTS, ConfigFile, console, in_project, workspace
from selfdistill.plan.subjects import artifact_ids, targets_showing
from selfdistill.schema.errors import UserError

#: Digits of commits and digests that people read.
_SHORT = 10


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=RESULTS)(in_project(lineage))


def lineage(
    name: Annotated[
        str, typer.Argument(help="Key, path, experiment, target, or line of a table (results/ood/toy_sdpo.csv:3).")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Everything that is known, as JSON.")] = False,
    as_dot: Annotated[bool, typer.Option("--dot", help="A graph in the DOT language.")] = False,
    as_svg: Annotated[bool, typer.Option("--svg", help="The graph as SVG (needs Graphviz).")] = False,
    configfile: ConfigFile = None,
) -> None:
    """Show what a result was made from (data, base model, specs, code, environment), and what was made from it."""
    if as_json + as_dot + as_svg > 1:
        raise UserError("give only one of --json, --dot and --svg.")
    project = workspace(configfile)
    found = Lineage.of(artifact_ids(project, name), project.root)
    showing = targets_showing(item.name for item in [*found.subjects, *found.downstream])
    targets = {path: shown.artifacts for path, shown in showing.items()}
    if as_json:
        shown = {str(path): sorted(names) for path, names in targets.items()}
        typer.echo(json.dumps({"name": name, **found.as_json(), "shown_in": shown}, indent=2, ensure_ascii=False))
    elif as_dot or as_svg:
        text = dot(found, targets)
        typer.echo(text if as_dot else _svg(text))
    else:
        _print(name, found, targets)


# --- on the terminal --------------------------------------------------------------------------------------------------


def _print(name: str, found: Lineage, targets: dict[Path, set[str]]) -> None:
    console.print(_tree_upstream(f"{name} was made from", found))
    if found.downstream or targets:
        console.print()
        console.print(_tree_downstream("Made from it", found, targets))
    console.print()
    for line in _code_and_environment([*found.upstream, *found.subjects]):
        console.print(line, markup=False, soft_wrap=True)
    console.print("Specs: results/artifacts/STAGE/NAME/spec.json; everything at once: --json.", soft_wrap=True)


def _tree_upstream(title: str, found: Lineage) -> Tree:
    tree, seen = Tree(Text(title, style="bold")), set[str]()

    def add(branch: Tree, item: Item, role: str, note: str = "") -> None:
        is_new = item.id not in seen
        seen.add(item.id)
        branch = branch.add(_label(item, role, note if is_new else "(above)"))
        if is_new:
            for source in [*_sources(item), *_continued(item)]:
                branch.add(Text(source, style="italic"))
            for name in item.input_ids:
                add(branch, item.upstream(name), name, "remade since" if name in item.remade_inputs else "")

    for subject in found.subjects:
        add(tree, subject, "")
    return tree


def _tree_downstream(title: str, found: Lineage, targets: dict[Path, set[str]]) -> Tree:
    tree, seen = Tree(Text(title, style="bold")), {item.id for item in found.subjects}

    def add(branch: Tree, item: Item) -> None:
        for path in (path for path, names in targets.items() if item.name in names):
            branch.add(Text(str(path), style="italic"))
        for made in (made for made in found.downstream if item.id in made.input_ids.values()):
            is_new = made.id not in seen
            seen.add(made.id)
            below = branch.add(_label(made, "", "" if is_new else "(above)"))
            if is_new:
                add(below, made)

    for subject in found.subjects:
        add(tree.add(_label(subject)) if len(found.subjects) > 1 else tree, subject)
    return tree


def _label(item: Item, role: str = "", note: str = "") -> Text:
    parts = [(f"{role}: ", "dim") if role else "", item.name, (f"  {item.state}", "" if _is_fine(item) else "red")]
    return Text.assemble(*parts, (f"  {_date(item)}", "dim"), (f"  {note}" if note else "", "yellow"))


def _is_fine(item: Item) -> bool:
    return item.state not in ("missing", "damaged")


def _date(item: Item) -> str:
    return (item.attempt.get("finished") or item.attempt.get("started") or "")[:16].replace("T", " ")


def _sources(item: Item) -> Iterator[str]:
    """What an artifact is made from outside the project: pinned files and models, or a generator and its settings."""
    for pin in item.pins:
        where = "@".join(part for part in (pin.get("repo"), (pin.get("revision") or "")[:_SHORT]) if part)
        digest = f"sha256 {pin['sha256'][:_SHORT]}" if "sha256" in pin else ""
        yield "from " + " ".join(part for part in (where, pin.get("file"), digest) if part)
    source = item.params.get("source")
    if source and not item.pins:
        yield "generated: " + ", ".join(f"{name} {_plain(value)}" for name, value in source.items())


def _continued(item: Item) -> Iterator[str]:
    """The shorter training that a training continued from."""
    source = item.attempt.get(CONTINUED)
    if source:
        yield f"continued from {source['name']} after step {source['step']} (manifest {source['manifest'][:_SHORT]})"


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _code_and_environment(items: Iterable[Item]) -> Iterator[str]:
    """One line for each commit, and for each environment, with the number of artifacts."""
    made = [item.attempt for item in items]
    yield from _counted("Code", map(_code, made))
    yield from _counted("Environment", map(_environment, made))


def _counted(title: str, entries: Iterable[str]) -> Iterator[str]:
    for text, count in Counter(entries).most_common():
        yield f"{title}: {text} ({count} artifact{'s' * (count > 1)})"


def _code(attempt: dict[str, Any]) -> str:
    changes = f" with uncommitted changes {attempt['dirty']}" if attempt.get("dirty") else ""
    return f"commit {attempt['commit'][:_SHORT]}{changes}" if attempt.get("commit") else "not recorded"


def _environment(attempt: dict[str, Any]) -> str:
    if "python" not in attempt:
        return "not recorded"
    libraries = attempt.get("libraries", {})
    versions = [f"{name} {libraries[name]}" for name in ("torch", "transformers", "vllm") if name in libraries]
    locks = [f"{name} {digest[:_SHORT]}" for name, digest in attempt.get("locks", {}).items()]
    return ", ".join([f"Python {attempt['python']}", *versions, *locks, f"host {attempt.get('host')}"])


# --- as a graph -------------------------------------------------------------------------------------------------------


def dot(found: Lineage, targets: dict[Path, set[str]]) -> str:
    """The lineage in the DOT language: edges lead from what something was made from to what was made."""
    subjects = {item.id for item in found.subjects}
    lines = ["digraph lineage {", "  rankdir=LR; node [shape=box, fontname=sans]; edge [fontname=sans, fontsize=10];"]
    by_name = {item.name: item.id for item in found.items}
    for item in found.items:
        style = "filled" if item.id in subjects else "solid" if _is_fine(item) else "dashed"
        label = _quoted(f"{item.name}\n{item.state} {_date(item)}")
        lines.append(f"  {_quoted(item.id)} [label={label}, style={style}];")
        for source in _sources(item):
            lines += [f"  {_quoted(source)} [shape=cylinder];", f"  {_quoted(source)} -> {_quoted(item.id)};"]
        for role, upstream in item.input_ids.items():
            if upstream in by_name.values():
                lines.append(f"  {_quoted(upstream)} -> {_quoted(item.id)} [label={_quoted(role)}];")
    for path, names in targets.items():
        lines.append(f"  {_quoted(str(path))} [shape=note];")
        lines += [f"  {_quoted(by_name[name])} -> {_quoted(str(path))};" for name in sorted(names)]
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _svg(text: str) -> str:
    program = shutil.which("dot")
    if program is None:
        raise UserError("--svg needs the program `dot`: install Graphviz (apt install graphviz), or use --dot.")
    done = subprocess.run([program, "-Tsvg"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`dot` failed: {done.stderr.strip()}")
    return done.stdout
