"""Scores of every method: results/ood/{experiment}.csv, and the report's headline, main figures and sections on them.

One row of the table per seed, evaluated step, benchmark and family (`all`, then each family that the data names); its
columns are described in docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from selfdistill.views.claims import LEAST_SEEDS, Verdict, together, verdict
from selfdistill.views.csv_table import DIFFERENCES, MEASURES, SOURCES, as_csv, evaluation_row
from selfdistill.views.figures import Dot, Line, dots, lines
from selfdistill.views.measures import ALL, DENSITY, EPISTEMIC, LENGTH, PASS, SCORE, TRUNCATED
from selfdistill.views.page import INTERVAL, Cell, Figure, Panel, Section, Table, key_cell, keys, method, num, text
from selfdistill.views.study import ALL_SEEDS, OUT_OF_DISTRIBUTION, Evaluation, ModelStudy, evaluations
from selfdistill.views.style import (
    BASE_LOOK,
    GRPO,
    METHODS,
    NUMBER,
    PERCENT,
    SDPO,
    Kind,
    Look,
    Scale,
    interval,
    listed,
    number,
    percent,
    signed,
    whole_percent,
)

OOD_COLUMNS = ("experiment", "seed", "step", "benchmark", "family", "domain", *MEASURES, *DIFFERENCES, *SOURCES)
_PANELS = ((SCORE, "Accuracy", PERCENT), (LENGTH, "Length, tokens", NUMBER),
           (DENSITY, "Epistemic words per 1,000 tokens", NUMBER))  # fmt: skip


#: Said below every figure of accuracies.
BOUNDS = "Dotted in accuracies: chance, where it is known, and 100 %."


def build_ood(plan: dict[str, Any]) -> str:
    """results/ood/{experiment}.csv."""
    rows = [
        evaluation_row(evaluation, seed, step, family) | {"family": family}
        for evaluation in evaluations(plan["rows"])
        for seed, step in evaluation.cells()
        for family in (ALL, *evaluation.measurement(step, seed).families)
    ]
    return as_csv(rows, OOD_COLUMNS)


def main_figures(study: ModelStudy) -> list[Figure]:
    """A figure per out-of-distribution benchmark (per any if there is none), the first beside one in distribution."""
    within = [name for name in study.benchmarks() if name not in study.main_benchmarks][:1]
    return [_main_figure(name, within if i == 0 else [], study) for i, name in enumerate(study.main_benchmarks)]


def _main_figure(name: str, within: list[str], study: ModelStudy) -> Figure:
    cut = (TRUNCATED, "Cut off by the length limit", PERCENT)
    score, length, density = _PANELS
    chosen = [(name, score), *((other, score) for other in within), (name, density), (name, length), (name, cut),
              *((other, density) for other in within)]  # fmt: skip
    found = study.on(name)
    k = _first(found).base.k
    chosen += [(name, (PASS, f"at least one of {k} right (pass@{k})", PERCENT))] if k > 1 else []
    panels = [_main_panel(benchmark, *about, study) for benchmark, about in chosen]
    sources = _sources(e for benchmark in (name, *within) for e in study.on(benchmark).values())
    others = "".join(f"; {other}: n = {_first(study.on(other)).base.n()}" for other in within)
    return Figure(panels, f"Last checkpoint. {name}: {_size(found)[:-1]}{others}. {INTERVAL}; ticks are the training "
                  f"seeds, and the dashed line is the base model. {BOUNDS}", sources)  # fmt: skip


def _main_panel(benchmark: str, metric: str, title: str, scale: Scale, study: ModelStudy) -> Panel:
    found = study.on(benchmark)
    bounds = _first(found).bounds() if metric == SCORE else ()
    plot = dots(_dots(found, study.looks, metric), scale, _first(found).base.mean(metric), bounds=bounds)
    return Panel(f"{benchmark}: {title[0].lower()}{title[1:]}", plot)


def _dots(found: dict[str, Evaluation], looks: dict[str, Look], metric: str, family: str = ALL) -> list[list[Dot]]:
    """A row for the base, then one per experiment with its training seeds."""
    rows = [[Dot(BASE_LOOK, BASE_LOOK.label, *_first(found).base.estimate(metric, family))]]
    for name, evaluation in found.items():
        points = [evaluation.last(seed).mean(metric, family) for seed in evaluation.seeds]
        rows.append([Dot(looks[name], looks[name].label, *evaluation.last().estimate(metric, family), points)])
    return rows


def _first(found: dict[str, Evaluation]) -> Evaluation:
    return next(iter(found.values()))


def _size(found: dict[str, Evaluation]) -> str:
    base = _first(found).base
    seeds = sorted({len(e.seeds) for e in found.values()})
    runs = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"n = {base.n()} problems, k = {base.k} per problem, {runs} training seed{'s' if seeds[-1] > 1 else ''}."


def _sources(found: Iterable[Evaluation]) -> list[tuple[str, str]]:
    roles = ("evaluate_artifact", "epistemics_artifact")
    return keys(n for e in found for step in (0, None) for role in roles for n in e.names(role, step=step))


def families_section(study: ModelStudy) -> Section | None:
    """Accuracy in each family of the out-of-distribution benchmarks; None if the data name no family."""
    blocks = []
    tallies = []
    for name in study.benchmarks(OUT_OF_DISTRIBUTION):
        found = study.on(name)
        base = _first(found).base
        if len(base.families) < 2:
            continue
        panels = [
            Panel(f"{family} (n = {base.n(family)})",
                  dots(_dots(found, study.looks, SCORE, family), PERCENT, base.mean(SCORE, family),
                       bounds=_first(found).bounds(family)))
            for family in base.families
        ]  # fmt: skip
        blocks.append(Figure(panels, f"{name}: accuracy by family. {_size(found)} {INTERVAL}. {BOUNDS}",
                             _sources(found.values())))  # fmt: skip
        tallies.append(_tally(study, name, base.families))
    if not blocks:
        return None
    return Section("families", "Out of distribution, by family", " ".join(tallies), blocks)


def _tally(study: ModelStudy, benchmark: str, families: list[str]) -> str:
    """`On toy_ood, GRPO is clearly above the base in 3 of 3 families and SDPO (c = s) is clearly below ..`"""
    found = study.by_method(benchmark)
    parts = []
    for kind, word, wanted in ((GRPO, "above", "yes"), (SDPO, "below", "no")):
        if kind in found:
            count = sum(verdict(found[kind].change(SCORE, family)) == wanted for family in families)
            parts.append(f"{METHODS[kind].label} is clearly {word} the base in {count} of {len(families)} families")
    return f"On {benchmark}, {listed(parts)}." if parts else f"{benchmark} has {len(families)} families."


def scores_section(study: ModelStudy) -> Section:
    """Every method on every benchmark, all numbers."""
    header = ("method", "benchmark", "seed", "step", "n", "k", "accuracy", "difference to base", "pass@k", "tokens",
              "truncated", "epistemic words", "per 1,000 tokens", "artifacts")  # fmt: skip
    rows = []
    for name in study.benchmarks():
        found = study.on(name)
        rows.append(_score_row(_first(found), BASE_LOOK, "–", 0))
        for experiment, evaluation in found.items():
            for seed in (ALL_SEEDS, *(evaluation.seeds if len(evaluation.seeds) > 1 else ())):
                rows.append(_score_row(evaluation, study.looks[experiment], seed, evaluation.steps[-1]))
    lead = f"Every score of the last checkpoint: {len(study.experiments)} experiments on " \
           f"{listed(study.benchmarks())}."  # fmt: skip
    notes = ("Seed “all” is over training seeds and problems; the interval of one seed is over problems alone.",)
    return Section("scores", "All scores", lead, [Table(header, rows, "Show the table", is_folded=True)], notes)


def _score_row(evaluation: Evaluation, look: Look, seed: int | str, step: int) -> list[Cell]:
    m = evaluation.measurement(step, seed)
    difference = signed(SCORE, m.difference(evaluation.base, SCORE)) if step else "–"
    numbers = (step, m.n(), m.k, interval(SCORE, m.estimate(SCORE)), difference, percent(m.mean(PASS)),
               number(m.mean(LENGTH)), percent(m.mean(TRUNCATED)), number(m.mean(EPISTEMIC)),
               number(m.mean(DENSITY)))  # fmt: skip
    artifacts = key_cell(evaluation.names("evaluate_artifact", seed, step))
    return [method(look), text(evaluation.benchmark), text(seed), *map(num, numbers), artifacts]


def checkpoints_section(study: ModelStudy) -> Section | None:
    """Scores over evaluated checkpoints; None when only the last one was evaluated."""
    blocks = []
    for name in study.benchmarks():
        found = {n: e for n, e in study.on(name).items() if len(e.steps) > 1}
        if not found:
            continue
        panels = [
            Panel(title, lines(curves, scale, "step", bounds=_first(found).bounds() if metric == SCORE else ()))
            for metric, title, scale in _PANELS
            if (curves := [_line(e, study.looks[n], metric) for n, e in found.items()])
        ]
        caption = f"{name} over checkpoints; step 0 is the base. {_size(found)} {INTERVAL}. {BOUNDS}"
        blocks.append(Figure(panels, caption, _sources(found.values()), [study.looks[n] for n in found]))
    if not blocks:
        return None
    return Section("checkpoints", "Benchmarks over training", "How the scores move from step 0, the base.", blocks)


def _line(evaluation: Evaluation, look: Look, metric: str) -> Line:
    steps = [0, *evaluation.steps]
    return Line.of(look, steps, [evaluation.measurement(step).estimate(metric) for step in steps])


def headline(study: ModelStudy) -> str:
    """One sentence about GRPO and SDPO (c = s) against the base, out of distribution; chosen by the numbers.

    The effect: GRPO surely gains and SDPO surely loses on every benchmark, with at least three training seeds each.
    """
    compared = [study.by_method(benchmark) for benchmark in study.benchmarks(OUT_OF_DISTRIBUTION)]
    compared = [found for found in compared if GRPO in found or SDPO in found]
    if not compared:
        return "There is no GRPO or SDPO run on an out-of-distribution benchmark here, so there is no finding to state."
    moves = [_expected_moves(found) for found in compared]
    whole = sum(together(verdicts) == "yes" for verdicts in moves)
    share = f" on {whole} of {len(compared)} benchmarks" if len(compared) > 1 else ""
    missing = [METHODS[kind].label for kind in (GRPO, SDPO) if kind not in compared[0]]
    seeds = min(len(found[kind].seeds) for found in compared for kind in (GRPO, SDPO) if kind in found)
    if missing:
        opening = f"No verdict on the paper's effect, since there is no {listed(missing)} run to compare with"
    elif seeds < LEAST_SEEDS:
        opening = f"No verdict on the paper's effect, which needs GRPO and SDPO with {LEAST_SEEDS} training seeds " \
                  f"each; here there {'are' if seeds > 1 else 'is'} {seeds}"  # fmt: skip
    else:
        opening = _verdict_on_effect(list(chain(*moves)), share)
    return f"{opening}: {_headline_detail(compared[0])}"


def _verdict_on_effect(moves: list[Verdict], share: str) -> str:
    if together(moves) == "yes":
        return f"The paper's effect shows{share}"
    if "yes" in moves:
        return "The paper's effect shows only in part" + (f", in full{share}" if share else "")
    if "no" in moves:
        return "The paper's effect does not show"
    return "These data do not settle whether the paper's effect shows"


def _expected_moves(found: dict[Kind, Evaluation]) -> list[Verdict]:
    """Whether GRPO gained and SDPO lost, of those that there are."""
    moves: list[Verdict] = []
    if GRPO in found:
        moves.append(verdict(found[GRPO].change(SCORE)))
    if SDPO in found:
        moves.append(verdict(found[SDPO].base.difference(found[SDPO].last(), SCORE)))
    return moves


def _headline_detail(found: dict[Kind, Evaluation]) -> str:
    """`on x .. GRPO gains 22.9 points ..; epistemic words per 1,000 tokens rise to 353 under GRPO (base: 288).`"""
    known = {METHODS[kind].label: found[kind] for kind in (GRPO, SDPO) if kind in found}
    first = next(iter(known.values()))
    moves = listed([f"{name} {_score_change(evaluation)}" for name, evaluation in known.items()])
    words = listed([f"{_density_change(evaluation)} under {name}" for name, evaluation in known.items()])
    return (
        f"on {first.benchmark}, where {whole_percent(first.base.mean(SCORE))} of the base model's answers are right, "
        f"{moves}; epistemic words per 1,000 tokens {words} (base: {number(first.base.mean(DENSITY))})."
    )


def _score_change(evaluation: Evaluation) -> str:
    """`gains 24.8 points`."""
    score = evaluation.change(SCORE)
    if verdict(score) not in ("yes", "no"):
        return f"does not clearly change ({signed(SCORE, score)})"
    return f"{'gains' if verdict(score) == 'yes' else 'loses'} {100 * abs(score.value):.1f} points"


def _density_change(evaluation: Evaluation) -> str:
    """`rise to 353`."""
    moved = verdict(evaluation.change(DENSITY))
    verb = {"yes": "rise to", "no": "fall to"}.get(moved, "do not clearly move from the base's:")
    return f"{verb} {number(evaluation.last().mean(DENSITY))}"
