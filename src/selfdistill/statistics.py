"""Scores with their uncertainty over problems: avg@k, pass@k, maj@k, intervals, corrections.

The unit of every interval is the problem: the samples of one problem are averaged first, then problems are resampled.
Comparisons of trained models need their training seeds as well: see `selfdistill.seeds`.
Shapes: P problems, K samples per problem. Intervals are two-sided. scipy is imported where it is used, since most
callers only need a mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: Resampled indices held at once (about 32 MB), so that a bootstrap over many problems stays small.
_CHUNK = 4_000_000
#: From so many values on, a mean's interval is taken from the normal distribution.
_LARGE = 2000


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def avg_at_k(correct_PK: ArrayLike) -> Array:
    """Share of correct samples of each problem, [P]; its mean over problems is avg@k (the paper's acc@16)."""
    return _binary(correct_PK).mean(axis=1)


def pass_at_k(correct_PK: ArrayLike, k: int) -> Array:
    """Unbiased chance that at least one of k samples is correct, [P]: 1 - C(n-c, k) / C(n, k) of n samples, c correct.

    Raises ValueError unless 1 <= k <= n.
    """
    correct = _binary(correct_PK)
    samples = correct.shape[1]
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples and k >= 1; there are {samples} samples")
    # Exact integers: the usual product of ratios drifts, and binomials of floats overflow.
    counts, inverse = np.unique(correct.sum(axis=1).astype(int), return_inverse=True)
    subsets = comb(samples, k)
    return np.array([1.0 - comb(samples - int(right), k) / subsets for right in counts])[inverse]


def maj_at_k(answers_PK: Sequence[Sequence[str]], correct_PK: ArrayLike) -> Array:
    """Chance that the most frequent answer is correct, [P].

    All correct answers are one candidate, however they are written. Empty (unparsed) answers do not vote. A tie is
    broken at random, so it counts by the share of its candidates that are correct; no vote at all counts 0.
    """
    correct = _binary(correct_PK)
    if [len(answers) for answers in answers_PK] != [correct.shape[1]] * correct.shape[0]:
        raise ValueError(f"answers must have the shape of correct, {correct.shape}")
    return np.array([_majority(answers, row) for answers, row in zip(answers_PK, correct, strict=True)])


def bootstrap_interval(values_P: ArrayLike, seed: int, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """Percentile bootstrap interval of the mean over problems. Raises ValueError for no or not finite values."""
    values = _finite(values_P)
    means = _resampled_means(values, seed, resamples)
    low, high = np.quantile(means, _tails(level))
    return Interval(float(low), float(high))


def mean_interval(values_P: ArrayLike, seed: int, level: float = 0.95) -> Interval:
    """Interval of the mean of many values: the bootstrap's, or from 2,000 values on the normal distribution's.

    There the two differ by about one per cent of their width, and the bootstrap's cost grows with the values.
    """
    values = _finite(values_P)
    if len(values) < _LARGE:
        return bootstrap_interval(values, seed, level)
    from scipy.stats import norm

    half = norm.ppf(_tails(level)[1]) * values.std() / len(values) ** 0.5
    return Interval(float(values.mean() - half), float(values.mean() + half))


def ratio_interval(numerators_P: ArrayLike, denominators_P: ArrayLike, seed: int, level: float = 0.95) -> Interval:
    """Interval of R = sum(n) / sum(d), to first order: problem i stands for R + (n_i - R d_i) / mean(d).

    Raises ValueError for unequal lengths, or denominators that sum to nothing.
    """
    numerators, denominators = _finite(numerators_P), _finite(denominators_P)
    if len(numerators) != len(denominators) or not denominators.sum() > 0:
        raise ValueError("a ratio needs a denominator for each numerator, and a positive sum of them")
    ratio = numerators.sum() / denominators.sum()
    return mean_interval(ratio + (numerators - ratio * denominators) / denominators.mean(), seed, level)


def binomial_interval(
    successes: int, trials: int, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> Interval:
    """Interval of a share of independent yes/no trials: Wilson's, or the exact one of Clopper and Pearson.

    Only for one sample per problem; samples of one problem are not independent. Raises ValueError for no trials.
    """
    from scipy.stats import binomtest

    if trials < 1:
        raise ValueError("a binomial interval needs at least one trial")
    bounds = binomtest(successes, trials).proportion_ci(confidence_level=level, method=method)
    return Interval(float(bounds.low), float(bounds.high))


def holm(p_values: ArrayLike) -> Array:
    """Holm's adjusted p-values of a family of comparisons, in the order given; at most 1. Empty in, empty out."""
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must be a list of numbers between 0 and 1")
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


def _majority(answers: Sequence[str], correct: Array) -> float:
    # None stands for the correct answer in all its spellings: it can clash with no text.
    votes = Counter(None if right else text for text, right in zip(answers, correct, strict=True) if right or text)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [candidate for candidate, number in votes.items() if number == most]
    return (None in winners) / len(winners)


def _resampled_means(values: Array, seed: int, resamples: int) -> Array:
    generator = np.random.default_rng(seed)
    problems = len(values)
    rows = max(1, _CHUNK // problems)
    chunks = [
        values[generator.integers(problems, size=(min(rows, resamples - start), problems))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(chunks)


def _tails(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    return (1 - level) / 2, (1 + level) / 2


def _binary(correct: ArrayLike) -> Array:
    values = np.asarray(correct, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected problems x samples with at least one of each, got shape {values.shape}")
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError("correctness must be 0 or 1")
    return values


def _finite(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected one value per problem and at least one problem, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite")
    return array
