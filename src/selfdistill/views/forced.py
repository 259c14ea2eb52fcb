"""Suppressed or forgotten? The same checkpoints in the plain way and in variants: results/forced/{model}.csv.

A variant forces the beginning of every completion, bans words, or cuts the token budget. If a method has only lost a
habit, its gap to the base closes when both are forced to begin with it; if the skill is gone, the gap stays. One row
per experiment, variant, seed, benchmark and family; `change_to_plain` compares the same checkpoints, and
`gap_to_base` compares with the base model *under the same variant*. Columns are described in docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from selfdistill.views.claims import verdict
from selfdistill.views.csv_table import MEASURES, SOURCES, as_csv, measures, sources
from selfdistill.views.measures import ALL, DENSITY, LENGTH, SCORE
from selfdistill.views.page import Cell, Section, Table, key_cell, method, num, text
from selfdistill.views.study import ALL_SEEDS, BASE, Evaluation, ModelStudy, Row, evaluations
from selfdistill.views.style import BASE_LOOK, Look, interval, number, signed

PLAIN = "plain"
CHANGE = tuple(f"change_to_plain{end}" for end in ("", "_low", "_high"))
GAP = tuple(f"gap_to_base{end}" for end in ("", "_low", "_high"))
FORCED_COLUMNS = (
    "experiment", "variant", "seed", "step", "benchmark", "family", "domain", *MEASURES, *CHANGE, *GAP, *SOURCES,
)  # fmt: skip

#: Variant -> evaluations of all experiments in that way; the first is the plain one.
Variants = dict[str, list[Evaluation]]


def by_variant(rows: Iterable[Row]) -> Variants:
    """A plan's rows sorted by variant, in the plan's order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.get("variant") or PLAIN, []).append(row)
    return {variant: evaluations(chosen) for variant, chosen in found.items()}


def build_forced(plan: dict[str, Any]) -> str:
    """results/forced/{model}.csv."""
    variants = by_variant(plan["rows"])
    plain = {_key(e): e for e in variants[PLAIN]}
    rows = [
        row
        for variant, found in variants.items()
        for evaluation in found
        for row in _rows(variant, evaluation, plain[_key(evaluation)])
    ]
    return as_csv(rows, FORCED_COLUMNS)


def _key(evaluation: Evaluation) -> tuple[str, str]:
    return evaluation.experiment, evaluation.benchmark


def _rows(variant: str, evaluation: Evaluation, plain: Evaluation) -> Iterator[dict[str, Any]]:
    """The base, each seed and all seeds, by family."""
    step = evaluation.steps[-1]
    for seed, at in ((BASE, 0), *evaluation.last_cells()):
        found, before = evaluation.measurement(at, seed), plain.measurement(at, seed)
        base = evaluation.base
        for family in (ALL, *found.families):
            change = found.difference(before, SCORE, family) if variant != PLAIN else (None,) * 3
            gap = found.difference(base, SCORE, family) if at else (None,) * 3
            yield {
                "experiment": evaluation.experiment,
                "variant": variant,
                "seed": seed,
                "step": step if at else 0,
                "benchmark": evaluation.benchmark,
                "family": family,
                "domain": evaluation.domain,
                **measures(found, family),
                **dict(zip(CHANGE, change, strict=True)),
                **dict(zip(GAP, gap, strict=True)),
                **sources(evaluation, seed, at),
            }


def forced_section(study: ModelStudy) -> Section | None:
    """Accuracy of every method in the plain way and in each variant; None where there are no variants."""
    variants = by_variant(study.forced)
    if len(variants) < 2:
        return None
    header = ("method", "benchmark", "variant", "accuracy", "change to plain", "gap to base in the same way", "tokens",
              "per 1,000 tokens", "artifacts")  # fmt: skip
    rows: list[list[Cell]] = []
    for benchmark in dict.fromkeys(e.benchmark for e in variants[PLAIN]):
        found = {
            variant: {e.experiment: e for e in chosen if e.benchmark == benchmark}
            for variant, chosen in variants.items()
        }
        first = next(iter(found[PLAIN]))
        rows += [_cells(BASE_LOOK, v, e[first], found[PLAIN][first], 0) for v, e in found.items() if first in e]
        for name, plain in found[PLAIN].items():
            look = study.looks[name]
            rows += [_cells(look, v, e[name], plain, plain.steps[-1]) for v, e in found.items() if name in e]
    notes = (
        "A forced beginning is part of the completion: its tokens count in lengths, its words in densities.",
        "The gap compares both models in the same way. A gap that closes says that a habit was suppressed; one that "
        "stays says that more was lost than the forced words.",
    )
    return Section("forced", "Suppressed or forgotten?", _lead(study, variants), [Table(header, rows)], notes)


def _cells(look: Look, variant: str, evaluation: Evaluation, plain: Evaluation, step: int) -> list[Cell]:
    found = evaluation.measurement(step)
    change = signed(SCORE, found.difference(plain.measurement(step), SCORE)) if variant != PLAIN else "–"
    gap = signed(SCORE, found.difference(evaluation.base, SCORE)) if step else "–"
    numbers = (interval(SCORE, found.estimate(SCORE)), change, gap, number(found.mean(LENGTH)),
               number(found.mean(DENSITY)))  # fmt: skip
    artifacts = key_cell(evaluation.names("evaluate_artifact", ALL_SEEDS, step))
    return [method(look), text(evaluation.benchmark), text(variant), *map(num, numbers), artifacts]


def _lead(study: ModelStudy, variants: Variants) -> str:
    """For each method that is clearly below the base: how far each variant closes the gap, on the first benchmark."""
    plain = {_key(e): e for e in variants[PLAIN]}
    sentences = []
    for benchmark in study.main_benchmarks[:1]:
        for (experiment, on), before in plain.items():
            if on != benchmark or verdict(gap := before.change(SCORE)) != "no":
                continue
            closed = [
                f"{variant} {signed(SCORE, e.change(SCORE))}"
                for variant, found in variants.items()
                for e in found
                if variant != PLAIN and _key(e) == (experiment, benchmark)
            ]
            sentences.append(
                f"{study.looks[experiment].label} on {benchmark}: {signed(SCORE, gap)} against the base in the plain "
                f"way; in the same way as the base: {'; '.join(closed)}."
            )
    return " ".join(sentences) or "No method is clearly below the base model in the plain way."
