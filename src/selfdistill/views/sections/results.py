"""Accuracy, length and density of every method, by benchmark and family, and over checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

from selfdistill.views.claims import Check, summary, verdict
from selfdistill.views.evaluations import ALL_SEEDS, Evaluation
from selfdistill.views.figures import Dot, Line, dots, lines
from selfdistill.views.measures import ALL, DENSITY, EPISTEMIC, LENGTH, PASS, SCORE, TRUNCATED, Measurement
from selfdistill.views.sections.blocks import INTERVAL, Canvas, Cell, Figure, Section, Table, key_cell, keys, num, text
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy, Study
from selfdistill.views.style import BASE, GRPO, METHODS, SDPO, Look
from selfdistill.views.wording import NUMBER, PERCENT, interval, listed, number, percent, signed

_PANELS = ((SCORE, "Accuracy", PERCENT), (LENGTH, "Length, tokens", NUMBER),
           (DENSITY, "Uncertainty words per 1,000 tokens", NUMBER))  # fmt: skip


def main_figures(study: ModelStudy, whole: Study, canvas: Canvas) -> list[Figure]:
    """One row of panels per out-of-distribution benchmark (per any benchmark if there is none)."""
    names = study.benchmarks(OUT_OF_DISTRIBUTION) or study.benchmarks()
    return [_main_figure(name, study.on(name), whole.looks, canvas) for name in names]


def _main_figure(name: str, found: dict[str, Evaluation], looks: dict[str, Look], canvas: Canvas) -> Figure:
    panels = [
        canvas.place(title, dots, _rows(found, looks, metric), scale, _base(found).mean(metric))
        for metric, title, scale in _PANELS
    ]
    return Figure(panels, f"{name}, last checkpoint. {_size(found)} {INTERVAL}; ticks are the training seeds, "
                  "and the dashed line is the base model.", keys(_sources(found.values())))  # fmt: skip


def _rows(found: dict[str, Evaluation], looks: dict[str, Look], metric: str, family: str = ALL) -> list[list[Dot]]:
    base = _base(found)
    rows = [[Dot(BASE, BASE.label, *base.estimate(metric, family))]]
    for name, evaluation in found.items():
        points = [evaluation.last(seed).mean(metric, family) for seed in evaluation.seeds]
        rows.append([Dot(looks[name], looks[name].label, *evaluation.last().estimate(metric, family), points)])
    return rows


def _base(found: dict[str, Evaluation]) -> Measurement:
    return next(iter(found.values())).base_measurement()


def _size(found: dict[str, Evaluation]) -> str:
    base = _base(found)
    seeds = sorted({len(e.seeds) for e in found.values()})
    runs = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"n = {base.n()} problems, k = {base.k} per problem, {runs} training seed{'s' if seeds[-1] > 1 else ''}."


def _sources(found: Iterable[Evaluation]) -> list[str]:
    names: list[str] = []
    for evaluation in found:
        for step in (0, evaluation.steps[-1]):
            artifacts = evaluation.artifacts(step)
            names += [*artifacts["evaluate_artifact"].split(";"), *artifacts["epistemics_artifact"].split(";")]
    return names


def checks_section(found: list[Check]) -> Section:
    rows = [
        [Cell(c.verdict, tone=c.verdict), text(c.where), text(c.expected), Cell(c.observed, detail=c.detail),
         num(c.size), key_cell(c.artifacts)]
        for c in found
    ]  # fmt: skip
    table = Table(("holds", "where", "expected", "observed", "size", "artifacts"), rows)
    notes = (
        "A claim holds when every neighbouring pair of its order differs in the expected direction and the 95 % "
        "interval of the paired difference excludes zero; it fails when one pair differs in the other direction; "
        "otherwise it is unclear. Intervals are not adjusted for the number of claims.",
    )
    lead = summary(found) if found else "This report holds too few experiments to check a claim of the paper."
    return Section("checks", "What the paper says, and what came out", lead, [table] if found else [], notes)


def families_section(study: ModelStudy, whole: Study, canvas: Canvas) -> Section | None:
    """Accuracy in each family of the out-of-distribution benchmarks; None if the data name no family."""
    blocks = []
    tallies = []
    for name in study.benchmarks(OUT_OF_DISTRIBUTION):
        found = study.on(name)
        families = _base(found).families
        if len(families) < 2:
            continue
        panels = [
            canvas.place(f"{family} (n = {_base(found).n(family)})", dots, _rows(found, whole.looks, SCORE, family),
                         PERCENT, _base(found).mean(SCORE, family))
            for family in families
        ]  # fmt: skip
        blocks.append(Figure(panels, f"{name}: accuracy by family. {_size(found)} {INTERVAL}.",
                             keys(_sources(found.values()))))  # fmt: skip
        tallies.append(_tally(study, name, families))
    if not blocks:
        return None
    return Section("families", "Out of distribution, by family", " ".join(tallies), blocks)


def _tally(study: ModelStudy, benchmark: str, families: list[str]) -> str:
    """`GRPO is above the base in 3 of 3 families of toy_ood, SDPO (c = s) below it in 3.`"""
    found = study.by_method(benchmark)
    parts = []
    for kind, word in ((GRPO, "above"), (SDPO, "below")):
        if kind in found:
            evaluation = found[kind]
            pairs = [(evaluation.last(), evaluation.base_measurement())] * len(families)
            if word == "below":
                pairs = [(b, a) for a, b in pairs]
            holding = sum(
                verdict(a.difference(b, SCORE, f)) == "yes" for (a, b), f in zip(pairs, families, strict=True)
            )
            parts.append(f"{METHODS[kind].label} is clearly {word} the base in {holding} of {len(families)} families")
    return f"On {benchmark}, {listed(parts)}." if parts else f"{benchmark} has {len(families)} families."


def scores_section(study: ModelStudy, whole: Study) -> Section:
    """Every method on every benchmark, all numbers."""
    header = ("method", "benchmark", "seed", "step", "n", "k", "accuracy", "difference to base", "pass@k", "tokens",
              "cut off", "uncertainty words", "per 1,000 tokens", "artifacts")  # fmt: skip
    rows = []
    for name in study.benchmarks():
        found = study.on(name)
        first = next(iter(found.values()))
        rows.append(_score_row(first, BASE, "–", 0))
        for experiment, evaluation in found.items():
            for seed in (ALL_SEEDS, *(evaluation.seeds if len(evaluation.seeds) > 1 else ())):
                rows.append(_score_row(evaluation, whole.looks[experiment], seed, evaluation.steps[-1]))
    lead = f"Every score of the last checkpoint: {len(study.experiments)} experiments on " \
           f"{listed(study.benchmarks())}."  # fmt: skip
    notes = ("Seed “all” averages the training seeds problem by problem; its interval is over problems.",)
    return Section("scores", "All scores", lead, [Table(header, rows, "Show the table", is_folded=True)], notes)


def _score_row(evaluation: Evaluation, look: Look, seed: int | str, step: int) -> list[Cell]:
    m = evaluation.measurement(step, seed)
    difference = signed(SCORE, m.difference(evaluation.base_measurement(), SCORE)) if step else "–"
    numbers = (f"{m.n()}", f"{m.k}", interval(SCORE, m.estimate(SCORE)), difference, percent(m.mean(PASS)),
               number(m.mean(LENGTH)), percent(m.mean(TRUNCATED)), number(m.mean(EPISTEMIC)),
               number(m.mean(DENSITY)))  # fmt: skip
    names = evaluation.artifacts(step, seed)["evaluate_artifact"].split(";")
    label = Cell(look.label, look=look)
    return [label, text(evaluation.benchmark), text(seed), num(str(step)), *map(num, numbers), key_cell(names)]


def checkpoints_section(study: ModelStudy, whole: Study, canvas: Canvas) -> Section | None:
    """Scores over evaluated checkpoints; None when only the last one was evaluated."""
    blocks = []
    for name in study.benchmarks():
        found = {n: e for n, e in study.on(name).items() if len(e.steps) > 1}
        if not found:
            continue
        panels = [
            canvas.place(title, lines, [_line(e, whole.looks[n], metric) for n, e in found.items()], scale, "step")
            for metric, title, scale in _PANELS
        ]
        caption = f"{name} over checkpoints; step 0 is the base. {_size(found)} {INTERVAL}."
        blocks.append(Figure(panels, caption, keys(_sources(found.values())), [whole.looks[n] for n in found]))
    if not blocks:
        return None
    return Section("checkpoints", "Benchmarks over training", "How the scores move from step 0, the base.", blocks)


def _line(evaluation: Evaluation, look: Look, metric: str) -> Line:
    steps = [0, *evaluation.steps]
    estimates = [evaluation.measurement(step).estimate(metric) for step in steps]
    return Line(look, steps, [e.value for e in estimates], [e.low for e in estimates], [e.high for e in estimates],
                has_markers=True)  # fmt: skip
