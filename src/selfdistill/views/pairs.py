"""Chosen pairs in a report: what `selfdistill compare A B` says, as one section each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from selfdistill.plan.pairs import SECTION, side_name
from selfdistill.views.comparison import (
    Comparison,
    Side,
    compare_sides,
    comparison_figure,
    comparison_sections,
)
from selfdistill.views.page import Section, Table, key_cell, text
from selfdistill.views.study import Evaluation, evaluations

#: The part of a comparison that is open at once; the others are behind their titles.
_OPEN = "scores"


def pair_sections(plan: dict[str, Any]) -> list[Section]:
    """A section for each pair of the report's `compare`."""
    pairs = plan.get(SECTION, [])
    found = evaluations(row for row in plan["rows"] if row.get("section") == SECTION)
    comparisons = [compare_sides(*(_side(name, found) for name in pair), plan["lexicon"]) for pair in pairs]
    return [_section(comparison, number) for number, comparison in enumerate(comparisons, start=1)]


def _side(name: str, found: Sequence[Evaluation]) -> Side:
    experiment, seed, step = side_name(name)
    return Side.of(name, [e for e in found if e.experiment == experiment], seed, step)


def _section(comparison: Comparison, number: int) -> Section:
    """The tables of a comparison under one title, after its training curves."""
    a, b = comparison.a.name, comparison.b.name
    parts = {part.anchor: part for part in comparison_sections(comparison)}
    figure = comparison_figure(comparison)
    blocks: list[Any] = [figure] if figure else []
    for anchor, part in parts.items():
        caption = f"{part.title}: {part.lead[0].lower()}{part.lead[1:]}"
        tables = [block for block in part.blocks if isinstance(block, Table)]
        blocks += tables if anchor == _OPEN else [replace(table, caption=caption, is_folded=True) for table in tables]
    blocks.append(_sources(comparison))
    name = f"{a} (A) and {b} (B)"
    anchor = "compare" if number == 1 else f"compare-{number}"
    return Section(anchor, "Two experiments compared", f"{name}: {parts[_OPEN].lead}", blocks)


def _sources(comparison: Comparison) -> Table:
    """Links to the evaluations behind the differences."""
    rows = [
        [text(side.name), text(benchmark), key_cell(side.names(benchmark, "evaluate_artifact"))]
        for side in (comparison.a, comparison.b)
        for benchmark in side.evaluations
    ]
    return Table(("side", "benchmark", "artifacts"), rows, "The evaluations behind these numbers", is_folded=True)
