"""show, compare: read the completions of an experiment, and compare two experiments."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfdistill.cli.console import RESULTS, ConfigFile, console, in_project, show_table, workspace
from selfdistill.files import write_atomically
from selfdistill.plan.experiments import get
from selfdistill.plan.pairs import side_name
from selfdistill.plan.workspace import Workspace
from selfdistill.schema.errors import unknown

# Tables and figures load pandas and matplotlib: they are imported where they are used.
if TYPE_CHECKING:
    from selfdistill.views.completions import Problem
    from selfdistill.views.study import Evaluation


def register(app: typer.Typer) -> None:
    for command in (show, compare):
        app.command(rich_help_panel=RESULTS)(in_project(command))


class Which(StrEnum):
    """Which problems are shown."""

    all = "all"
    right = "right"
    wrong = "wrong"
    changed = "changed"


def show(
    experiment: Annotated[str, typer.Argument(help="Name of an experiment.")],
    problem: Annotated[int | None, typer.Option(help="Only this problem (its row in the benchmark, from 0).")] = None,
    benchmark: Annotated[str | None, typer.Option(help="Its benchmark; the first one by default.")] = None,
    diff: Annotated[str | None, typer.Option(metavar="OTHER", help="Show another experiment beside it.")] = None,
    which: Annotated[
        Which,
        typer.Option(help="Problems it gets right, wrong, or differently from the base (with --diff: from OTHER)."),
    ] = Which.all,
    seed: Annotated[int | None, typer.Option(help="Training seed; the lowest by default.")] = None,
    sample: Annotated[int, typer.Option(min=0, help="Which of the k completions of a problem.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Most problems shown.")] = 5,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    configfile: ConfigFile = None,
) -> None:
    """Show completions: question, gold answer, and what the base and the experiment wrote, epistemic words marked."""
    from selfdistill.views.completions import completions_of, sources_of
    from selfdistill.views.completions import problem as read_problem
    from selfdistill.views.style import looks

    project = workspace(configfile)
    found = [evaluation(project, name, benchmark) for name in (experiment, diff) if name]
    chosen = looks(e.base_row for e in found)
    sources = list(dict.fromkeys(s for e in found for s in sources_of(e, chosen[e.experiment], seed)))
    lexicon = project.planner.config.lexicon
    first = completions_of(sources[0].artifact, sources[0].step)
    rows = [problem] if problem is not None else list(dict.fromkeys(first["row_id"]))
    shown = 0
    for row in rows:
        entry = read_problem(row, sources, lexicon, sample)
        if _is_chosen(entry, which, has_other=diff is not None):
            (_print_markdown if markdown else _print)(entry, found[0].benchmark)
            shown += 1
        if shown == limit:
            break
    if not shown:
        console.print(f"No problem of {found[0].benchmark} is {which.value} under {experiment}.")


def evaluation(project: Workspace, name: str, benchmark: str | None = None) -> Evaluation:
    """A finished experiment on a benchmark (None: its first). UserError where either is unknown or not finished."""
    from selfdistill.views.study import evaluations

    get(project.planner.experiments, name)
    found = {e.benchmark: e for e in evaluations(project.plan("ood", name).as_json()["rows"])}
    if benchmark is not None and benchmark not in found:
        raise unknown(f"benchmark of {name}", benchmark, found)
    return found[benchmark or next(iter(found))]


def _is_chosen(entry: Problem, which: Which, *, has_other: bool) -> bool:
    base, own, *others = entry.completions
    reference = others[-1] if has_other and others else base
    if which is Which.changed:
        return own.is_right != reference.is_right
    return which is Which.all or own.is_right == (which is Which.right)


def _print(entry: Problem, benchmark: str) -> None:
    from rich.panel import Panel
    from rich.text import Text

    text = Text(entry.question + "\n", style="bold")
    for completion in entry.completions:
        style = "green" if completion.is_right else "red"
        text.append(f"\n{completion.look.label}: ", style="bold")
        text.append("right" if completion.is_right else completion.outcome, style=style)
        cut = ", cut off" if completion.is_truncated else ""
        text.append(f" ({completion.tokens} tokens{cut}, {completion.words} epistemic words)\n", style="dim")
        for piece, is_word in completion.pieces:
            text.append(piece, style="black on yellow" if is_word else "")
        text.append("\n")
    title = f"{benchmark}, problem {entry.row_id} {entry.family}, gold answer {entry.answer}"
    console.print(Panel(text, title=Text(title), title_align="left"))


def _print_markdown(entry: Problem, benchmark: str) -> None:
    lines = [f"## {benchmark}, problem {entry.row_id} {entry.family}".rstrip(), "", entry.question, "",
             f"Gold answer: {entry.answer}", ""]  # fmt: skip
    for completion in entry.completions:
        outcome = "right" if completion.is_right else completion.outcome
        said = "".join(f"**{piece}**" if is_word else piece for piece, is_word in completion.pieces)
        lines += [f"### {completion.look.label}: {outcome}, {completion.tokens} tokens, "
                  f"{completion.words} epistemic words", "", said, ""]  # fmt: skip
    typer.echo("\n".join(lines))


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="EXPERIMENT, EXPERIMENT:SEED or EXPERIMENT:SEED:STEP.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same of another, or the same experiment.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write a page with the training curves.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    configfile: ConfigFile = None,
) -> None:
    """Compare two experiments, seeds or checkpoints: settings, paired differences, words, flipped problems, cost."""
    from selfdistill.views.comparison import Side, compare_sides, comparison_json, comparison_page, comparison_sections
    from selfdistill.views.study import evaluations

    project = workspace(configfile)
    sides = []
    for text in (a, b):
        name = side_name(text)
        get(project.planner.experiments, name.experiment)
        found = evaluations(project.plan("ood", name.experiment).as_json()["rows"])
        sides.append(Side.of(text, found, name.seed, name.step))
    comparison = compare_sides(*sides, project.planner.config.lexicon)
    if as_json:
        typer.echo(json.dumps(comparison_json(comparison), indent=2, ensure_ascii=False))
        return
    if html is not None:
        write_atomically(html, comparison_page(comparison, html.parent))
        console.print(f"Wrote {html}")
        return
    for section in comparison_sections(comparison):
        console.print(f"\n[bold]{section.title}[/bold]: {section.lead}")
        for table in (block for block in section.blocks if hasattr(block, "rows")):
            show_table(table.header, [[cell.text for cell in row] for row in table.rows])
