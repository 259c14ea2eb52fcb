"""results/richness/{model}.csv: what a teacher sees, and how it then writes (arXiv 2603.24472, table 1).

One row per teacher context, all on the same problems, which the base model sometimes solves.

avg_at_k            fraction 0..1 over the completions under that context; 95 % intervals over problems.
n                   problems; fewer than in the row `none` where some have no such context (no correct completion).
paper_*             the paper's values, of DeepSeek-R1-Distill-Qwen-7B on mathematics; its density is count / length.
The row `none` holds problems chosen for a low solve rate, so its score is low by selection.
"""

from __future__ import annotations

from typing import Any

from selfdistill.views.command import Plan, run
from selfdistill.views.evaluations import Row
from selfdistill.views.measures import DENSITY, EPISTEMIC, LENGTH, Estimate, Measurement, measure
from selfdistill.views.published import RICHNESS
from selfdistill.views.tables import MEASURES, as_csv, measures

_WITH_INTERVAL = {"mean_length": LENGTH, "epistemic_count": EPISTEMIC, "epistemic_density_per_1k_tokens": DENSITY}
PAPER = ("paper_avg_at_k", "paper_mean_length", "paper_epistemic_count", "paper_epistemic_density_per_1k_tokens")


def _with_intervals(columns: tuple[str, ...]) -> tuple[str, ...]:
    parts = ((c, f"{c}_low", f"{c}_high") if c in _WITH_INTERVAL else (c,) for c in columns)
    return tuple(name for part in parts for name in part)


COLUMNS = ("model", "context", *_with_intervals(MEASURES), *PAPER, "rollouts_artifact", "epistemics_artifact")


def build(plan: Plan) -> str:
    return as_csv([context_row(row) for row in plan["rows"]], COLUMNS)


def context_measurement(row: Row) -> Measurement:
    """The completions of one context (a plan's row of kind `richness`)."""
    by_step = measure(row["rollouts_artifact"], row["epistemics_artifact"])
    return by_step[min(by_step)]


def context_row(row: Row) -> dict[str, Any]:
    """The table's row of one context."""
    measurement = context_measurement(row)
    cells = measures(measurement)
    for name, metric in _WITH_INTERVAL.items():
        cells |= _interval(name, measurement.estimate(metric))
    paper = RICHNESS.get(row["context"])
    if paper is not None:
        cells |= zip(PAPER, (*paper, paper.density), strict=True)
    names = ("model", "context", "rollouts_artifact", "epistemics_artifact")
    return {name: row[name] for name in names} | cells


def _interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {f"{name}_low": estimate.low, f"{name}_high": estimate.high}


if __name__ == "__main__":
    run("richness", build)
