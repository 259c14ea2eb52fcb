"""The leaderboard of cures for one base model: results/cures/{model}.csv and the report's section.

A row per method and benchmark, training seeds averaged, last checkpoint, after a row for the base. Its columns are
described in docs/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from selfdistill.views.csv_table import DIFFERENCES, MEASURES, SOURCES, as_csv, evaluation_row
from selfdistill.views.leaderboard import REFERENCES, WINDOW, Leaderboard, Versus, steps_to_90_percent, teacher_tokens
from selfdistill.views.measures import DENSITY, LENGTH, PASS, SCORE
from selfdistill.views.page import Cell, Figure, Panel, Section, Table, key_cell, keys, method, num
from selfdistill.views.scatter import Point, scatter
from selfdistill.views.study import ALL_SEEDS, BASE, FINAL_STEPS, OUT_OF_DISTRIBUTION, Evaluation, ModelStudy
from selfdistill.views.style import BASE_LOOK, METHODS, NUMBER, PERCENT, interval, number, percent, signed

_NAMES = {name: METHODS[kind].label if kind else "the base" for name, kind in REFERENCES.items()}
#: Intervals beside those of MEASURES.
_INTERVALS = {metric: (f"{column}_low", f"{column}_high") for metric, column in
              ((PASS, "pass_at_k"), (LENGTH, "mean_length"), (DENSITY, "epistemic_density"))}  # fmt: skip
_VARIANT = ("variant_avg_at_k", "variant_avg_at_k_low", "variant_avg_at_k_high")
#: Mean over the training seeds, least and most.
_COST = {name: (name, f"{name}_min", f"{name}_max") for name in ("steps_to_90_percent", "teacher_tokens")}
#: Columns of a difference, by reference; those of the base are the tables' own.
_DIFFERENCES = {
    name: DIFFERENCES if name == "base" else tuple(f"difference_to_{name}{end}" for end in ("", "_low", "_high"))
    for name in REFERENCES
}
_COMPARED = tuple(c for name, columns in _DIFFERENCES.items() for c in (*columns, f"p_{name}", f"versus_{name}"))
CURES_COLUMNS = ("model", "experiment", "label", "method", "context", "control", "seeds", "benchmark", "domain", "step",
                 *MEASURES, *chain(*_INTERVALS.values()), "variant", *_VARIANT, *chain(*_COST.values()), *_COMPARED,
                 *SOURCES)  # fmt: skip
# --- the table --------------------------------------------------------------------------------------------------------


def build_cures(plan: dict[str, Any]) -> str:
    """results/cures/{model}.csv."""
    board = Leaderboard.of(plan["rows"])
    rows = []
    for members in board.benchmarks.values():
        rows.append(_base_row(members[0], board))
        rows += [_row(e, board) for e in members]
    return as_csv(rows, CURES_COLUMNS)


def _base_row(evaluation: Evaluation, board: Leaderboard) -> dict[str, Any]:
    row = _shared(evaluation, board, BASE, 0)
    return row | {"experiment": BASE, "label": BASE_LOOK.label, "method": BASE}


def _row(evaluation: Evaluation, board: Leaderboard) -> dict[str, Any]:
    row = _shared(evaluation, board, ALL_SEEDS, evaluation.steps[-1])
    about = evaluation.base_row
    row |= {name: about[name] for name in ("label", "method", "context")}
    row |= {
        "control": "yes" if about["is_control"] else "no",
        "seeds": len(evaluation.seeds),
    }
    for name, values in _costs(evaluation).items():
        if values is not None:
            row |= dict(zip(_COST[name], (float(np.mean(values)), min(values), max(values)), strict=True))
    for reference in REFERENCES:
        versus = board.versus.get((evaluation.experiment, evaluation.benchmark, reference))
        if versus is None:
            continue
        row |= dict(zip(_DIFFERENCES[reference], versus.difference, strict=True))
        row |= {f"p_{reference}": versus.p_value, f"versus_{reference}": versus.verdict}
    return row


def _shared(evaluation: Evaluation, board: Leaderboard, seed: int | str, step: int) -> dict[str, Any]:
    row = evaluation_row(evaluation, seed, step)
    del row["seed"]
    row["model"] = evaluation.base_row["model"]
    for metric, columns in _INTERVALS.items():
        row |= dict(zip(columns, evaluation.measurement(step, seed).estimate(metric).interval(), strict=True))
    forced = board.in_variant.get((evaluation.experiment, evaluation.benchmark))
    if forced is not None:
        scores = forced.measurement(step, seed).estimate(SCORE)
        row |= {"variant": forced.base_row["variant"], **dict(zip(_VARIANT, scores, strict=True))}
    return row


def _costs(evaluation: Evaluation) -> dict[str, Sequence[float] | None]:
    """By name in _COST, of each training seed; None where they are not known."""
    steps = steps_to_90_percent(evaluation.names("train_artifact"))
    return {"steps_to_90_percent": steps, "teacher_tokens": teacher_tokens(evaluation)}


# --- the report's section ---------------------------------------------------------------------------------------------


def cures_section(study: ModelStudy) -> Section | None:
    """Accuracy against density, and the methods by accuracy on every benchmark; None without a leaderboard."""
    if not study.cures:
        return None
    board = Leaderboard.of(study.cures)
    outside = {n: m for n, m in board.benchmarks.items() if m[0].domain == OUT_OF_DISTRIBUTION} or board.benchmarks
    blocks: list[Figure | Table] = [_figure(name, members, study) for name, members in outside.items()]
    blocks += [_table(name, members, board, study) for name, members in board.benchmarks.items()]
    notes = (
        "Verdicts: the paired difference in accuracy over training seeds and problems, p-value at most 5 % after "
        "Holm's adjustment for all comparisons of the leaderboard. Intervals hold for one comparison at a time.",
        f"Steps: until the training score, a mean of {WINDOW} steps, is 90 % of that of the last {FINAL_STEPS}; “–” "
        f"where the last {FINAL_STEPS} are not above the first {WINDOW} by more than two standard errors.",
        "Teacher tokens: what the second network reads in one run; “–” where it was not counted. Of both: the mean "
        "over training seeds, the least and the most.",
    )
    return Section("cures", "Cures and controls", _lead(outside, board), blocks, notes)


def _lead(outside: dict[str, list[Evaluation]], board: Leaderboard) -> str:
    """How many methods end above and below the base, and how density and accuracy go together."""
    from scipy.stats import spearmanr

    parts = []
    for name, members in outside.items():
        verdicts = [board.versus[e.experiment, name, "base"].verdict for e in members]
        above, below = verdicts.count("higher"), verdicts.count("lower")
        part = f"On {name}, {above} of {len(members)} methods end above the base, {below} below it, and " \
               f"{len(members) - above - below} are not decided"  # fmt: skip
        if len(members) > 2:
            pairs = [[e.last().mean(metric) for e in members] for metric in (DENSITY, SCORE)]
            part += f"; density and accuracy have a rank correlation of {spearmanr(*pairs).statistic:.2f}"
        parts.append(part + ".")
    return " ".join(parts)


def _figure(name: str, members: Sequence[Evaluation], study: ModelStudy) -> Figure:
    base = members[0].base
    points = [Point(BASE_LOOK, BASE_LOOK.label, base.estimate(DENSITY), base.estimate(SCORE))]
    points += [
        Point(
            study.cure_looks[e.experiment],
            _label(e, study),
            e.last().estimate(DENSITY),
            e.last().estimate(SCORE),
            is_hollow=e.base_row["is_control"],
        )
        for e in members
    ]
    caption = (
        f"{name}, last checkpoint: accuracy against epistemic words per 1,000 tokens; n = {base.n()} problems, "
        f"k = {base.k}. Bars are 95 % intervals over training seeds and problems. Hollow: controls."
    )
    sources = keys(artifact for e in members for artifact in e.names("evaluate_artifact"))
    panel = Panel("Accuracy and density", scatter(points, NUMBER, PERCENT, "epistemic words per 1,000 tokens"))
    return Figure([panel], caption, sources)


def _label(evaluation: Evaluation, study: ModelStudy) -> str:
    mark = " · control" if evaluation.base_row["is_control"] else ""
    return study.cure_looks[evaluation.experiment].label + mark


def _table(name: str, members: Sequence[Evaluation], board: Leaderboard, study: ModelStudy) -> Table:
    base = members[0].base
    header = ("method", "accuracy", *(f"against {n}, points" for n in _NAMES.values()), f"pass@{base.k}", "tokens",
              "per 1,000 tokens", _variant(members, board), "steps", "teacher tokens", "artifacts")  # fmt: skip
    nothing = num("–")
    rows = [[
        method(BASE_LOOK),
        _estimate(SCORE, base.estimate(SCORE)),
        *[nothing] * len(REFERENCES),
        *_measured(members[0], board, 0),
        *[nothing] * 2,
        key_cell(members[0].names("evaluate_artifact", step=0)),
    ]]  # fmt: skip
    for e in sorted(members, key=lambda e: -e.last().mean(SCORE)):
        runs = e.names("train_artifact")
        # A ring is a control, as in the figure.
        line = "--" if e.base_row["is_control"] else "-"
        look = replace(study.cure_looks[e.experiment], label=_label(e, study), line=line)
        rows.append([
            method(look),
            _estimate(SCORE, e.last().estimate(SCORE)),
            *(_versus_cell(board.versus.get((e.experiment, name, reference))) for reference in REFERENCES),
            *_measured(e, board, e.steps[-1]),
            *map(_cost, _costs(e).values()),
            key_cell([*runs, *e.names("evaluate_artifact")]),
        ])  # fmt: skip
    seeds = sorted({len(e.seeds) for e in members})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return Table(header, rows, f"{name}: best first; {counted} training seeds each")


def _measured(evaluation: Evaluation, board: Leaderboard, step: int) -> list[Cell]:
    """pass@k, length, density, and accuracy in the variant."""
    m = evaluation.measurement(step)
    found = board.in_variant.get((evaluation.experiment, evaluation.benchmark))
    return [
        *(_estimate(metric, m.estimate(metric)) for metric in (PASS, LENGTH, DENSITY)),
        num("–") if found is None else _estimate(SCORE, found.measurement(step).estimate(SCORE)),
    ]


def _estimate(metric: str, estimate: Iterable[float]) -> Cell:
    """A value, and its interval below."""
    value, low, high = estimate
    if metric in (SCORE, PASS):
        return Cell(percent(value), tone="num", detail="[" + interval(SCORE, (value, low, high)).rpartition(" [")[2])
    return Cell(number(value), tone="num", detail=f"[{number(low)}, {number(high)}]")


def _cost(values: Sequence[float] | None) -> Cell:
    """The mean over seeds, and the least and the most below where they differ."""
    if values is None:
        return num("–")
    mean, low, high = (f"{v:,.0f}" if v == int(v) else number(v) for v in (np.mean(values), min(values), max(values)))
    return Cell(mean, tone="num", detail="" if low == high else f"{low} to {high}")


def _variant(members: Sequence[Evaluation], board: Leaderboard) -> str:
    """Title of the column with the accuracy in the variant."""
    found = board.in_variant.get((members[0].experiment, members[0].benchmark))
    return "in the variant" if found is None else f"variant {found.base_row['variant']}"


def _versus_cell(versus: Versus | None) -> Cell:
    if versus is None:
        return num("–")
    return Cell(versus.verdict, tone="num", detail=signed(SCORE, versus.difference).replace(" points", ""))
