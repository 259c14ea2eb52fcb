"""Means and differences with their uncertainty over training seeds *and* problems.

A set of runs is a matrix of scores, S training seeds by P problems: the samples of one problem are averaged first. Its
mean varies for three reasons: other seeds, other problems, and the sampling of completions. As in a crossed analysis
of variance

    problems   v_P = var over problems of (mean over seeds) / P             (holds the sampling noise, too)
    seeds      v_S = var over seeds of (mean over problems) / S             (holds the sampling noise, too)
    noise      v_N = mean square of what is left / (S P)

The variance of the mean is v_P, plus v_S where seeds spread by more than sampling explains (v_S > 1.25 v_N: with few
seeds v_S is too noisy to subtract v_N from it). Half the width of an interval is the root of that sum times a quantile
of Student's t: with three seeds the normal's 1.96 becomes up to 4.3. With two parts (P - 1 and S - 1 degrees of
freedom) two quantiles are in use: Cochran and Cox's, which weights the quantiles of the parts by their variances and
errs on the wide side, and Welch and Satterthwaite's, at the degrees of freedom of the sum, which errs on the narrow
side. Ours is halfway between them. A difference of two sets of runs is paired over problems, and has the seeds of
both; the degrees of freedom of their sum are Welch's. By simulation (tests/unit/test_seeds.py) 95 % intervals hold
the truth in 93 to 97 % of cases for 3 seeds whose scores have a standard deviation of 0 to 6 points, and where there
is no difference at most 6 % of verdicts find one.

Holm's adjustment of m comparisons asks for p-values down to 5 % / m. So far out, leaving the spread of seeds out errs
often: three seeds lie close together by chance more often than that. `family_p_value` therefore always counts their
spread, and takes Cochran and Cox's quantile alone. By simulation a table of 40 comparisons without any difference has
a false verdict in at most 5 % of cases if seeds deviate by up to 3 points, and in at most 10 % at 6 points.

A base model has one row that no seed varies; a trained model with one seed says nothing of other seeds, so a
comparison with it decides nothing beyond the problems. Values without any spread and comparisons on few problems are
judged by exact tests. Shapes: S seeds, P problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
#: v_S / v_N from which the spread of seeds counts.
_MORE_THAN_NOISE = 1.25
#: Up to so many problems the p-value is at least that of the exact sign-flip test over problems (2^P flips).
_FEW_PROBLEMS = 10
#: Tails thinner than this are not told apart.
_LEAST = 1e-12


class Part(NamedTuple):
    """One source of variance of a mean, and its degrees of freedom."""

    variance: float
    freedom: float


@dataclass(frozen=True)
class Runs:
    """Scores of one model, `values_SP`; `is_trained`: its rows are training seeds, not one base model.

    `bounds`: what a mean can be (0 and 1 for shares, 0 and infinity for lengths): no interval goes beyond them, and
    finite ones give the interval of values without spread; None for no bounds.
    """

    values_SP: Array
    is_trained: bool
    bounds: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: ArrayLike, *, is_trained: bool, bounds: tuple[float, float] | None = None) -> Runs:
        """ValueError unless `values` is a finite matrix with at least one seed and one problem."""
        matrix = np.asarray(values, dtype=float)
        if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
            raise ValueError(f"expected finite values of seeds x problems, got shape {matrix.shape}")
        return cls(matrix, is_trained, bounds)

    @property
    def seeds(self) -> int:
        return self.values_SP.shape[0]

    @property
    def per_problem(self) -> Array:
        """Mean over seeds, [P]."""
        return self.values_SP.mean(axis=0)

    @property
    def has_one_seed(self) -> bool:
        return self.is_trained and self.seeds == 1

    @cached_property
    def seed_part(self) -> Part | None:
        """The variance of the mean over seeds, with the sampling noise in it; None without at least two seeds."""
        if not self.is_trained or self.seeds == 1:
            return None
        variance = self.values_SP.mean(axis=1).var(ddof=1) / self.seeds
        return Part(float(variance), self.seeds - 1)

    @cached_property
    def seeds_spread(self) -> bool:
        """Whether seeds spread by more than sampling explains."""
        if self.seed_part is None:
            return False
        seeds, problems = self.values_SP.shape
        means_S = self.values_SP.mean(axis=1)
        noise = 0.0
        if problems > 1:
            left = self.values_SP - means_S[:, None] - self.per_problem + self.values_SP.mean()
            noise = (left**2).sum() / ((seeds - 1) * (problems - 1)) / (seeds * problems)
        # Rounding: equal seeds leave 1e-34, which is no spread.
        return bool(self.seed_part.variance > max(_MORE_THAN_NOISE * noise, 1e-24 * (means_S**2).max()))


@dataclass(frozen=True)
class Uncertain:
    """A mean or a difference of means with what is known of its spread.

    `over` says what its interval is over: `seeds and problems`, `problems`, or `problems, one seed`. `limits`: what the
    value can be at all; intervals end there.
    """

    value: float
    parts: tuple[Part, ...]
    over: str
    problems: int
    #: Least p-value against zero that an exact test over problems allows.
    exact_p: float = 0.0
    #: Interval of values without any spread, from an exact test.
    exact: tuple[float, float] | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)
    #: The spread of seeds where it may be noise of sampling, and so is not in `parts`.
    noise: Part | None = None

    @property
    def has_one_seed(self) -> bool:
        return self.over == "problems, one seed"

    @property
    def low(self) -> float:
        return self.interval()[0]

    @property
    def high(self) -> float:
        return self.interval()[1]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided interval; NaN where one problem says nothing of others."""
        if self.exact is not None:
            return self.exact
        half = self._quantile((1 + level) / 2) * self._deviation
        # In this order NaN stays NaN.
        return max(self.value - half, self.limits[0]), min(self.value + half, self.limits[1])

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that the value is `null`; 1 where nothing can be said.

        It agrees with the interval. For one comparison at a time: see `family_p_value`.
        """
        return self._p_value(null, self._deviation, self._quantile)

    def family_p_value(self, null: float = 0.0) -> float:
        """The p-value to adjust for several comparisons: its tail counts all spread of seeds. Never below `p_value`."""
        parts = self.parts if self.noise is None else (*self.parts, self.noise)
        deviation = sum(part.variance for part in parts) ** 0.5
        return max(self.p_value(null), self._p_value(null, deviation, lambda q: _cochran_cox(parts, q)))

    def _p_value(self, null: float, deviation: float, quantile: Callable[[float], float]) -> float:
        from scipy.optimize import brentq

        distance = abs(self.value - null)
        if self.problems == 1 or distance == 0:
            return 1.0
        if deviation == 0:
            return self.exact_p
        score = distance / deviation
        if quantile(1 - _LEAST) <= score:
            found = 2 * _LEAST
        else:
            found = 2 * (1 - brentq(lambda q: quantile(q) - score, 0.5, 1 - _LEAST))
        return min(1.0, max(found, self.exact_p if null == 0 else 0.0))

    def __iter__(self):
        """value, low, high."""
        return iter((self.value, *self.interval()))

    @property
    def _variance(self) -> float:
        return sum(part.variance for part in self.parts)

    @property
    def _deviation(self) -> float:
        return self._variance**0.5

    def _quantile(self, q: float) -> float:
        """Student's quantile of a sum of parts, halfway between two rules; NaN if a part has no degree of freedom."""
        from scipy.stats import t

        if any(part.freedom == 0 for part in self.parts):
            return float("nan")
        if self._variance == 0:
            return 0.0
        return (_cochran_cox(self.parts, q) + float(t.ppf(q, _welch_freedom(self.parts)))) / 2


def _cochran_cox(parts: Sequence[Part], q: float) -> float:
    """Cochran and Cox's quantile of a sum of parts: theirs, weighted by their variances."""
    from scipy.stats import t

    weighted = sum(part.variance * float(t.ppf(q, part.freedom)) for part in parts)
    return weighted / sum(part.variance for part in parts)


def _welch_freedom(parts: Sequence[Part]) -> float:
    """Welch and Satterthwaite's degrees of freedom of a sum of variances."""
    return sum(part.variance for part in parts) ** 2 / sum(part.variance**2 / part.freedom for part in parts)


def mean(runs: Runs) -> Uncertain:
    """The mean score of a model with its uncertainty."""
    return _uncertain(runs.per_problem, (runs,), runs.bounds)


def difference(a: Runs, b: Runs) -> Uncertain:
    """Mean of a - b, paired over problems: column i of both belongs to one problem. ValueError for unequal numbers."""
    if a.values_SP.shape[1] != b.values_SP.shape[1]:
        raise ValueError(
            f"paired values must cover the same problems: {a.values_SP.shape[1]} against {b.values_SP.shape[1]}"
        )
    bounds = None
    if a.bounds is not None and b.bounds is not None:
        bounds = (a.bounds[0] - b.bounds[1], a.bounds[1] - b.bounds[0])
    return _uncertain(a.per_problem - b.per_problem, (a, b), bounds)


def _uncertain(values_P: Array, runs: tuple[Runs, ...], bounds: tuple[float, float] | None) -> Uncertain:
    problems = len(values_P)
    parts = _parts(values_P, runs)
    has_no_spread = sum(part.variance for part in parts) == 0
    exact = None
    if has_no_spread and problems > 1 and bounds is not None and np.isfinite(bounds).all():
        exact = _exact_interval(float(values_P[0]), problems, bounds)
    return Uncertain(
        value=float(values_P.mean()),
        parts=parts,
        over=_over(runs),
        problems=problems,
        exact_p=sign_flip_p_value(values_P) if has_no_spread or problems <= _FEW_PROBLEMS else 0.0,
        exact=exact,
        limits=bounds or (-math.inf, math.inf),
        noise=_sum_of_seeds([run for run in runs if not run.seeds_spread]),
    )


def sign_flip_p_value(values_P: ArrayLike) -> float:
    """Exact two-sided p-value of the mean over all 2^P flips of signs; more than 16 problems all alike: 2^(1-P)."""
    values = np.asarray(values_P, dtype=float)
    if len(values) > 16:
        return 2.0 ** (1 - int((values != 0).sum()))
    flips = np.array(list(product((1, -1), repeat=len(values))))
    sums = np.abs(flips @ values)
    return float((sums >= abs(values.sum()) * (1 - 1e-12) - 1e-300).mean())


def _parts(values_P: Array, runs: tuple[Runs, ...]) -> tuple[Part, ...]:
    problems = len(values_P)
    variance = float(values_P.var(ddof=1) / problems) if problems > 1 else 0.0
    # Rounding: equal values leave 1e-33, which is no spread.
    parts = [Part(variance if variance > 1e-24 * (values_P**2).max(initial=0) else 0.0, problems - 1)]
    seeds = _sum_of_seeds([run for run in runs if run.seeds_spread])
    return tuple(parts if seeds is None else [*parts, seeds])


def _sum_of_seeds(runs: Sequence[Runs]) -> Part | None:
    seeds = [run.seed_part for run in runs if run.seed_part is not None and run.seed_part.variance > 0]
    return Part(sum(part.variance for part in seeds), _welch_freedom(seeds)) if seeds else None


def _over(runs: tuple[Runs, ...]) -> str:
    if any(run.has_one_seed for run in runs):
        return "problems, one seed"
    return "seeds and problems" if any(run.is_trained for run in runs) else "problems"


def _exact_interval(value: float, problems: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """P problems all alike: at most a share 1 - 0.025^(1/P) of all problems differs, by as much as bounds allow."""
    share = 1 - ((1 - LEVEL) / 2) ** (1 / problems)
    return value - share * (value - bounds[0]), value + share * (bounds[1] - value)
