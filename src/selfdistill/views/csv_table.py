"""CSV as the views write it: fixed columns, six significant digits, empty cells for what does not exist.

The columns are described in docs/report.md, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from selfdistill.views.measures import ALL, DENSITY, EPISTEMIC, LENGTH, PASS, SCORE, TRUNCATED, Measurement
from selfdistill.views.study import ARTIFACTS, Evaluation

_SCORES = ("avg_at_k", "avg_at_k_low", "avg_at_k_high")
_MEANS = {"pass_at_k": PASS, "mean_length": LENGTH, "truncation_rate": TRUNCATED, "epistemic_count": EPISTEMIC,
          "epistemic_density_per_1k_tokens": DENSITY}  # fmt: skip
#: What describes a set of graded completions, in the order of the tables.
MEASURES = ("n", "k", *_SCORES, *_MEANS)
DIFFERENCES = ("difference_to_base", "difference_low", "difference_high")
#: Artifacts behind a row, and those of the base behind its differences.
SOURCES = (*ARTIFACTS, "base_artifact")


def measures(measurement: Measurement, family: str = ALL) -> dict[str, Any]:
    """The MEASURES of one family of problems; avg@k with its interval."""
    score = zip(_SCORES, measurement.estimate(SCORE, family), strict=True)
    means = {column: measurement.mean(metric, family) for column, metric in _MEANS.items()}
    return {"n": measurement.n(family), "k": measurement.k, **dict(score), **means}


def evaluation_row(evaluation: Evaluation, seed: int | str, step: int, family: str = ALL) -> dict[str, Any]:
    """The columns that all tables of evaluations share; the difference in avg@k is paired over problems."""
    measurement = evaluation.measurement(step, seed)
    difference = measurement.difference(evaluation.base, SCORE, family) if step else (None, None, None)
    return {
        "experiment": evaluation.experiment,
        "seed": seed,
        "step": step,
        "benchmark": evaluation.benchmark,
        "domain": evaluation.domain,
        **measures(measurement, family),
        **dict(zip(DIFFERENCES, difference, strict=True)),
        **sources(evaluation, seed, step),
    }


def sources(evaluation: Evaluation, seed: int | str, step: int) -> dict[str, str]:
    """The SOURCES of a row, several names joined with `;`; a row of the base has no differences."""
    of_base = [name for role in ARTIFACTS[1:] for name in evaluation.names(role, step=0)] if step else []
    names = {role: evaluation.names(role, seed, step) for role in ARTIFACTS} | {"base_artifact": of_base}
    return {column: ";".join(found) for column, found in names.items()}


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows in order; a row without a column leaves its cell empty, and a key that is no column is a fault."""
    rows = list(rows)
    extra = sorted({key for row in rows for key in row} - set(columns))
    if extra:
        raise ValueError(f"not columns of this table: {', '.join(extra)}")
    table = pd.DataFrame.from_records([{c: _cell(row.get(c)) for c in columns} for row in rows], columns=list(columns))
    return table.to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    # Rounding first: a sum that should cancel must not print as 1e-17.
    return f"{round(value, 12) + 0.0:.6g}"
