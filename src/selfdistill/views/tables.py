"""CSV as the views write it: fixed columns, six significant digits, empty cells for what does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from selfdistill.views.measures import DENSITY, EPISTEMIC, LENGTH, PASS, SCORE, TRUNCATED, Measurement

#: What a set of graded completions is described by, in the order of the tables.
MEASURES = (
    "n", "k", "avg_at_k", "avg_at_k_low", "avg_at_k_high", "pass_at_k", "mean_length", "truncation_rate",
    "epistemic_count", "epistemic_density_per_1k_tokens",
)  # fmt: skip
DIFFERENCES = ("difference_to_base", "difference_low", "difference_high")


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows in order; a row without a column leaves its cell empty, and a key that is no column is a fault."""
    rows = list(rows)
    extra = sorted({key for row in rows for key in row} - set(columns))
    if extra:
        raise ValueError(f"not columns of this table: {', '.join(extra)}")
    table = pd.DataFrame.from_records([{c: _cell(row.get(c)) for c in columns} for row in rows], columns=list(columns))
    return table.to_csv(index=False, lineterminator="\n")


def measures(measurement: Measurement, family: str = "all") -> dict[str, Any]:
    """The MEASURES of one family of problems; avg@k with its interval."""
    score = measurement.estimate(SCORE, family)
    return {
        "n": measurement.n(family),
        "k": measurement.k,
        "avg_at_k": score.value,
        "avg_at_k_low": score.low,
        "avg_at_k_high": score.high,
        "pass_at_k": measurement.mean(PASS, family),
        "mean_length": measurement.mean(LENGTH, family),
        "truncation_rate": measurement.mean(TRUNCATED, family),
        "epistemic_count": measurement.mean(EPISTEMIC, family),
        "epistemic_density_per_1k_tokens": measurement.mean(DENSITY, family),
    }


def differences(measurement: Measurement, base: Measurement, family: str = "all") -> dict[str, Any]:
    """The DIFFERENCES of avg@k, paired over the same problems."""
    difference = measurement.difference(base, SCORE, family)
    return dict(zip(DIFFERENCES, difference, strict=True))


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    # Rounding first: a sum that should cancel must not print as 1e-17.
    return f"{round(value, 12) + 0.0:.6g}"
