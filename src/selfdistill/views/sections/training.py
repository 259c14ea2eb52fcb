"""Training curves, and the sweep over the number of distinct problems."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from selfdistill.views.coverage import WHOLE
from selfdistill.views.coverage_claims import problems, sweep
from selfdistill.views.evaluations import Evaluation
from selfdistill.views.figures import Line, lines
from selfdistill.views.measures import DENSITY, LENGTH, SCORE
from selfdistill.views.sections.blocks import INTERVAL, Canvas, Cell, Figure, Section, Table, key_cell, keys, num
from selfdistill.views.study import OUT_OF_DISTRIBUTION, ModelStudy, Study
from selfdistill.views.style import BASE, Look, kinds
from selfdistill.views.training import FINAL_STEPS, REWARD, TOKENS, WORDS, curves, final_values
from selfdistill.views.wording import NUMBER, PERCENT, interval, listed, number, percent, signed, whole_percent

_CURVES = ((REWARD, "Training score", PERCENT), (TOKENS, "Length, tokens", NUMBER),
           (WORDS, "Uncertainty words per completion", NUMBER))  # fmt: skip

_AXIS = "distinct training problems"
_NARROW = 245
#: (method, context) -> experiments by number of distinct problems.
Sweeps = dict[tuple[str, str | None], list[Evaluation]]


def curves_section(study: ModelStudy, whole: Study, canvas: Canvas) -> Section | None:
    """Score, length and uncertainty words of the training rollouts; None if no method samples in training."""
    tables = {
        name: [curves(row["train_artifact"]) for row in rows]
        for name, rows in study.training.items()
        if all(REWARD in curves(row["train_artifact"]) for row in rows)
    }
    if not tables:
        return None
    panels = []
    for column, title, scale in _CURVES:
        series = [_line(found, column, whole.looks[name]) for name, found in tables.items() if column in found[0]]
        if series:
            panels.append(canvas.place(title, lines, series, scale, "training step"))
    seeds = max(len(found) for found in tables.values())
    caption = (
        "Means over the completions sampled in each training step, smoothed over five steps. "
        f"Thick: mean of {seeds} training seed{'s' if seeds > 1 else ''}; thin: each seed. There is no interval here."
    )
    sources = keys(row["train_artifact"] for name in tables for row in study.training[name])
    figure = Figure(panels, caption, sources, [whole.looks[name] for name in tables])
    ends = [_ending(whole.looks[name].label, [r["train_artifact"] for r in study.training[name]]) for name in tables]
    lead = f"In the last {FINAL_STEPS} steps of training {listed(ends)}."
    return Section("curves", "While training", lead, [figure])


def _line(tables: Sequence, column: str, look: Look) -> Line:
    smooth = [table[column].rolling(5, min_periods=1, center=True).mean() for table in tables]
    steps = sorted(set.intersection(*(set(s.index) for s in smooth)))
    mean = np.mean([s.loc[steps].to_numpy() for s in smooth], axis=0)
    faint = [(list(s.index), list(s)) for s in smooth] if len(smooth) > 1 else []
    return Line(look, steps, list(mean), faint=faint)


def _ending(label: str, runs: list[str]) -> str:
    score, tokens = final_values(runs, REWARD), final_values(runs, TOKENS)
    length = "" if tokens is None else f" with {number(tokens.mean())} tokens"
    return f"{label} scores {whole_percent(score.mean())}{length}"


def coverage_section(study: ModelStudy, whole: Study, canvas: Canvas) -> Section | None:
    """Training score, out-of-distribution score, length and density against the number of distinct problems."""
    benchmarks = list(dict.fromkeys(e.benchmark for e in study.coverage if e.domain == OUT_OF_DISTRIBUTION))
    if not benchmarks:
        return None
    blocks: list[Figure | Table] = []
    leads = []
    for name in benchmarks:
        swept = {kind: sweep(study, kind, name) for kind in kinds(e.about for e in study.coverage)}
        swept = {kind: found for kind, found in swept.items() if found}
        blocks.append(_coverage_figure(name, swept, whole, canvas))
        blocks.append(_coverage_table(swept, whole))
        leads += [_coverage_lead(found, whole) for found in swept.values() if len(found) > 1]
    lead = " ".join(dict.fromkeys(leads)) or "Only one number of distinct problems was trained on."
    return Section("coverage", "How many distinct problems are trained on", lead, blocks)


def _coverage_figure(name: str, swept: Sweeps, whole: Study, canvas: Canvas) -> Figure:
    ticks = list(dict.fromkeys(_place(e) for e in sorted(chain(*swept.values()), key=_order)))
    looks = {kind: _look(found, whole) for kind, found in swept.items()}
    first = next(iter(swept.values()))[0]
    measured = (("accuracy", SCORE, PERCENT), ("tokens", LENGTH, NUMBER),
                ("word density", DENSITY, NUMBER))  # fmt: skip
    rewards = [_reward_line(found, ticks, looks[kind]) for kind, found in swept.items()]
    panels = [canvas.place("Training score", lines, rewards, PERCENT, _AXIS, ticks=ticks, width=_NARROW)]
    for title, metric, scale in measured:
        series = [_sweep_line(found, ticks, metric, looks[kind]) for kind, found in swept.items()]
        base = first.base_measurement().mean(metric)
        series.append(Line(BASE, range(len(ticks)), [base] * len(ticks)))
        panels.append(canvas.place(f"{name}: {title}", lines, series, scale, _AXIS, ticks=ticks, width=_NARROW))
    caption = (
        f"Training score: mean of the last {FINAL_STEPS} steps, bars span the training seeds. "
        f"{name}: n = {first.last().n()} problems, k = {first.last().k}. {INTERVAL}. Grey: the base model."
    )
    names = [n for e in chain(*swept.values()) for n in e.artifacts(e.steps[-1])["evaluate_artifact"].split(";")]
    return Figure(panels, caption, keys(names), [*looks.values(), BASE])


def _reward_line(found: Sequence[Evaluation], ticks: Sequence[str], look: Look) -> Line:
    """Mean over seeds at each size; single seeds as ends of the vertical bar when there are several."""
    x, y, low, high = [], [], [], []
    for evaluation in found:
        runs = [final_values([row["train_artifact"]], REWARD) for row in evaluation.seeds.values()]
        scores = [float(values.mean()) for values in runs if values is not None]
        if scores:
            x.append(ticks.index(_place(evaluation)))
            y.append(sum(scores) / len(scores))
            low.append(min(scores))
            high.append(max(scores))
    return Line(look, x, y, low, high, has_markers=True)


def _sweep_line(found: Sequence[Evaluation], ticks: Sequence[str], metric: str, look: Look) -> Line:
    x = [ticks.index(_place(e)) for e in found]
    estimates = [e.last().estimate(metric) for e in found]
    return Line(look, x, [e.value for e in estimates], [e.low for e in estimates], [e.high for e in estimates],
                has_markers=True)  # fmt: skip


def _coverage_table(swept: Sweeps, whole: Study) -> Table:
    header = ("method", "distinct", "seeds", "training score", "training tokens", "accuracy", "difference to base",
              "tokens", "uncertainty words per 1,000 tokens", "artifacts")  # fmt: skip
    rows = []
    for found in swept.values():
        look = _look(found, whole)
        for evaluation in found:
            last = evaluation.last()
            artifacts = evaluation.artifacts(evaluation.steps[-1])
            runs = artifacts["train_artifact"].split(";")
            score, tokens = final_values(runs, REWARD), final_values(runs, TOKENS)
            rows.append([
                Cell(look.label, look=look), num(_place(evaluation)), num(str(len(evaluation.seeds))),
                num("–" if score is None else percent(score.mean())),
                num("–" if tokens is None else number(tokens.mean())),
                num(interval(SCORE, last.estimate(SCORE))),
                num(signed(SCORE, last.difference(evaluation.base_measurement(), SCORE))),
                num(number(last.mean(LENGTH))), num(number(last.mean(DENSITY))),
                key_cell([*runs, *artifacts["evaluate_artifact"].split(";")]),
            ])  # fmt: skip
    return Table(header, rows, "Show the table", is_folded=True)


def _coverage_lead(found: Sequence[Evaluation], whole: Study) -> str:
    """Training score and accuracy at the two ends of a sweep."""
    few, many = found[0], found[-1]
    scores = [final_values(e.artifacts(e.steps[-1])["train_artifact"].split(";"), REWARD) for e in (few, many)]
    if scores[0] is None or scores[1] is None:
        return ""
    accuracy = [whole_percent(e.last().mean(SCORE)) for e in (few, many)]
    return (
        f"From {_place(few)} to {problems(many)}, the training score of {_look(found, whole).label} goes from "
        f"{whole_percent(scores[0].mean())} to {whole_percent(scores[1].mean())} and its accuracy on {few.benchmark} "
        f"from {accuracy[0]} to {accuracy[1]}."
    )


def _look(found: Sequence[Evaluation], whole: Study) -> Look:
    """The look of the sweep's method: of its parent experiment, whose name starts that of every member."""
    names = [e.about["experiment"] for e in found]
    parent = next((name for name in names if name in whole.looks), None)
    return whole.looks[parent or next(n for n in whole.looks if names[0].startswith(n))]


def _place(evaluation: Evaluation) -> str:
    return str(evaluation.about["distinct"] or WHOLE)


def _order(evaluation: Evaluation) -> tuple[bool, int]:
    distinct = evaluation.about["distinct"]
    return distinct is None, distinct or 0
