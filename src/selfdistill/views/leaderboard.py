"""What the leaderboard of cures says of each method: comparisons, speed and cost.

Every method is compared with the base, and with the first GRPO and the first SDPO (c = s) of the table, paired over
problems; p-values are Holm's for all comparisons of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfdistill.seeds import Uncertain
from selfdistill.views.claims import Comparison, adjust
from selfdistill.views.measures import SCORE
from selfdistill.views.study import FINAL_STEPS, REWARD, Evaluation, Row, curves, evaluations
from selfdistill.views.style import GRPO, SDPO

#: What every method is compared with, and the methods' kinds; the base is no method.
REFERENCES = {"base": None, **{kind[0]: kind for kind in (GRPO, SDPO)}}
#: Steps over which a training score is smoothed.
WINDOW = 5
_WORDS = {"yes": "higher", "no": "lower"}


class Versus(NamedTuple):
    """A difference in accuracy with its adjusted p-value and verdict: higher, lower, unclear or one seed."""

    difference: Uncertain
    p_value: float
    verdict: str


@dataclass(frozen=True)
class Leaderboard:
    """The experiments of one base model. `in_variant`: by experiment and benchmark, where they have a variant."""

    found: Sequence[Evaluation]
    in_variant: dict[tuple[str, str], Evaluation]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Leaderboard:
        rows = list(rows)
        found = evaluations(row for row in rows if not row.get("variant"))
        variants = evaluations(row for row in rows if row.get("variant"))
        return cls(found, {(e.experiment, e.benchmark): e for e in variants})

    @cached_property
    def benchmarks(self) -> dict[str, list[Evaluation]]:
        by_name: dict[str, list[Evaluation]] = {}
        for evaluation in self.found:
            by_name.setdefault(evaluation.benchmark, []).append(evaluation)
        return by_name

    @cached_property
    def versus(self) -> dict[tuple[str, str, str], Versus]:
        """By experiment, benchmark and reference."""
        differences = {}
        for name, members in self.benchmarks.items():
            for reference, kind in REFERENCES.items():
                other = next((e for e in members if e.kind == kind), None)
                for e in members:
                    if kind is None:
                        differences[e.experiment, name, reference] = e.change(SCORE)
                    elif other is not None and other is not e:
                        differences[e.experiment, name, reference] = e.last().difference(other.last(), SCORE)
        compared = adjust([Comparison.greater(found) for found in differences.values()])
        return {
            key: Versus(differences[key], c.p_value, _WORDS.get(c.verdict, c.verdict))
            for key, c in zip(differences, compared, strict=True)
        }


def steps_to_90_percent(runs: Sequence[str]) -> list[int] | None:
    """Of each run, the first step whose training score, a mean of the WINDOW steps up to it, is 90 % of the final one
    (mean of the last FINAL_STEPS). None where a run has no training score, or one that does not rise.
    """
    found = []
    for run in runs:
        table = curves(run)
        scores = table[REWARD].dropna() if REWARD in table else pd.Series(dtype=float)
        if not rises(scores.to_numpy()):
            return None
        smooth = scores.rolling(WINDOW).mean()
        reached = smooth.index[smooth >= 0.9 * scores.iloc[-FINAL_STEPS:].mean()]
        if not len(reached):
            return None
        found.append(int(reached[0]))
    return found


def rises(scores: NDArray[np.float64]) -> bool:
    """Whether the mean of the last FINAL_STEPS is above that of the first WINDOW by more than two standard errors.

    The noise of one step is taken from the differences of successive steps (von Neumann), which a trend hardly moves:
    their mean square is twice its variance.
    """
    if len(scores) < WINDOW:
        return False
    first, final = scores[:WINDOW], scores[-FINAL_STEPS:]
    variance = (np.diff(scores) ** 2).mean() / 2
    return bool(final.mean() - first.mean() > 2 * np.sqrt(variance * (1 / len(first) + 1 / len(final))))


def teacher_tokens(evaluation: Evaluation) -> list[float] | None:
    """Tokens that the second network read in each run; 0 without one, None where not measured."""
    runs = evaluation.names("train_artifact")
    if not evaluation.base_row["has_second_network"]:
        return [0.0] * len(runs)
    tables = [curves(run) for run in runs]
    if any("teacher_tokens" not in table for table in tables):
        return None
    return [float(table["teacher_tokens"].sum()) for table in tables]
