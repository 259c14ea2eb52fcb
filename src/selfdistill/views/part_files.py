"""One figure or table of a report as a file.

results/figures/{report}/{part}.svg|pdf     in a paper's text width
results/tables/{report}/{part}.md|tex

A part is called MODEL-SECTION-N: `toy-main-1` is the first figure of the first screen, `toy-scores-2` the second figure
or table of the section `scores`, `losses-1` one of a section for all models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from selfdistill.schema.errors import UserError, unknown
from selfdistill.views.figures import figure_file
from selfdistill.views.page import Cell, Figure, Table
from selfdistill.views.report import pages_of

#: What the files of a folder can be.
FORMATS = {"figures": (".svg", ".pdf"), "tables": (".md", ".tex")}


def part_file(folder: str, plan: dict[str, Any], output: Path) -> str | bytes:
    """The content of a file in results/figures or results/tables; UserError for a part that the report lacks."""
    if output.suffix not in FORMATS[folder]:
        raise UserError(f"{output}: {folder} are written as {' or '.join(FORMATS[folder])}.")
    kind = Figure if folder == "figures" else Table
    found = {name: part for name, part in parts(plan).items() if isinstance(part, kind)}
    if output.stem not in found:
        raise unknown(f"part of the report `{plan['name']}`", output.stem, found)
    part = found[output.stem]
    if isinstance(part, Figure):
        panels = [(panel.title, panel.plot) for panel in part.panels]
        return figure_file(panels, part.legend, part.columns, output.suffix[1:])
    return as_markdown(part) if output.suffix == ".md" else as_latex(part)


def parts(plan: dict[str, Any]) -> dict[str, Figure | Table]:
    """Every figure and table of a report by its name, in the report's order."""
    pages, shared = pages_of(plan)
    found: dict[str, Figure | Table] = {}
    for page in pages:
        found |= {f"{page.name}-main-{number}": figure for number, figure in enumerate(page.main, start=1)}
    sections = [(f"{page.name}-", section) for page in pages for section in page.sections]
    for prefix, section in [*sections, *(("", section) for section in shared)]:
        shown = [block for block in section.blocks if isinstance(block, Figure | Table)]
        found |= {f"{prefix}{section.anchor}-{number}": block for number, block in enumerate(shown, start=1)}
    return found


def as_markdown(table: Table) -> str:
    """A table as GitHub and pandoc read it."""
    frame = _frame(table)
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    rows = [" | ".join(part.replace("|", "\\|") for part in line) for line in lines]
    caption = [f"{_caption(table)}\n"] if _caption(table) else []
    return "\n".join([*caption, *(f"| {row} |" for row in rows)]) + "\n"


def as_latex(table: Table) -> str:
    """A `tabular` with rules of booktabs."""
    styled = _frame(table).style.format(escape="latex").format_index(escape="latex", axis="columns").hide(axis="index")
    caption = _caption(table)
    text = styled.to_latex(hrules=True, caption=caption or None, position="t" if caption else None)
    return text.replace("\u00a0", "~").replace("−", "$-$").replace("–", "--")


def _caption(table: Table) -> str:
    """That of a folded table says what to click on."""
    return "" if table.is_folded else table.caption


def _frame(table: Table) -> pd.DataFrame:
    """The texts of the cells; a column of links alone is left out."""
    frame = pd.DataFrame([[_text(cell) for cell in row] for row in table.rows], columns=list(table.header))
    return frame.loc[:, frame.ne("").any()]


def _text(cell: Cell) -> str:
    """What a cell says, without the links to its artifacts."""
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text
