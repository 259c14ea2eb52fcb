"""Estimators against closed forms, brute force and simulation."""

from __future__ import annotations

from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.statistics import (
    avg_at_k,
    binomial_interval,
    bootstrap_interval,
    holm,
    maj_at_k,
    mean_interval,
    pass_at_k,
    ratio_interval,
)


def test_avg_at_k_averages_the_samples_of_each_problem():
    assert avg_at_k([[1, 0, 0, 1], [True, True, True, False]]).tolist() == [0.5, 0.75]


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    subsets = list(combinations(correct, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k([correct], k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_has_its_closed_forms():
    correct = [[1] * c + [0] * (16 - c) for c in (0, 1, 5, 16)]
    assert pass_at_k(correct, 1).tolist() == avg_at_k(correct).tolist()
    assert pass_at_k(correct, 16).tolist() == [0, 1, 1, 1]
    assert pass_at_k(correct, 4)[2] == pytest.approx(1 - (11 * 10 * 9 * 8) / (16 * 15 * 14 * 13))


def test_pass_at_k_survives_many_samples():
    assert pass_at_k([[1] + [0] * 3999], 1000)[0] == pytest.approx(0.25)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_more_samples_than_there_are(k):
    with pytest.raises(ValueError, match="samples"):
        pass_at_k([[1, 0, 0, 1]], k)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["5", "5", "7"], [1, 1, 0], 1.0),
        (["7", "7", "5"], [0, 0, 1], 0.0),
        (["5", "7"], [1, 0], 0.5),
        (["1/2", "0.5", "3", "3", "4"], [1, 1, 0, 0, 0], 0.5),
        (["1/2", "0.5", "3"], [1, 1, 0], 1.0),
        (["", "", "5"], [0, 0, 1], 1.0),
        (["", ""], [0, 0], 0.0),
        (["1", "2", "3"], [0, 0, 1], 1 / 3),
    ],
)
def test_maj_at_k_votes(answers, correct, expected):
    assert maj_at_k([answers], [correct])[0] == pytest.approx(expected)


def test_maj_at_k_refuses_answers_of_another_shape():
    with pytest.raises(ValueError, match="shape"):
        maj_at_k([["1"]], [[1, 0]])


def test_correctness_must_be_binary_and_present():
    with pytest.raises(ValueError, match="0 or 1"):
        avg_at_k([[0.5, 1]])
    with pytest.raises(ValueError, match="at least one"):
        avg_at_k([])


def test_bootstrap_of_two_values_has_the_binomial_distribution():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], seed=0, level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0], seed=0, level=0.8) == (0.0, 1.0)


def test_bootstrap_matches_the_normal_approximation_for_many_problems():
    values = np.random.default_rng(1).random(2000)
    low, high = bootstrap_interval(values, seed=3)
    half = 1.959964 * values.std() / sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_depends_on_its_seed_alone():
    values = [0.1, 0.5, 0.9, 0.3]
    assert bootstrap_interval(values, 7) == bootstrap_interval(np.array(values), 7)
    assert bootstrap_interval(np.arange(30.0), 7) != bootstrap_interval(np.arange(30.0), 8)


def test_bootstrap_of_equal_values_is_a_point():
    assert bootstrap_interval([0.25] * 5, 0) == (0.25, 0.25)


def test_bootstrap_over_many_problems_stays_small(monkeypatch):
    whole = bootstrap_interval(np.arange(100.0), 0, resamples=50)
    monkeypatch.setattr("selfdistill.statistics._CHUNK", 700)
    assert bootstrap_interval(np.arange(100.0), 0, resamples=50) == whole


@pytest.mark.parametrize("values", [[], [float("nan")], [[1.0]]])
def test_bootstrap_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError):
        bootstrap_interval(values, 0)


def test_bootstrap_refuses_a_level_in_percent():
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([0.0, 1.0], 0, level=95)


def test_the_interval_of_many_values_is_the_normal_one_and_of_few_the_bootstraps():
    few, many = np.random.default_rng(2).random(50), np.random.default_rng(2).random(4000)
    assert mean_interval(few, 5) == bootstrap_interval(few, 5)
    half = 1.959963984540054 * many.std() / sqrt(4000)
    assert mean_interval(many, 5) == pytest.approx((many.mean() - half, many.mean() + half))


def test_a_ratio_with_equal_denominators_has_the_interval_of_a_mean():
    values = np.random.default_rng(3).random(40)
    assert ratio_interval(values * 7, [7.0] * 40, 1) == pytest.approx(bootstrap_interval(values, 1))


def test_a_ratio_interval_is_near_the_bootstrap_of_the_ratio():
    generator = np.random.default_rng(4)
    tokens = generator.integers(500, 1500, 200).astype(float)
    words = generator.poisson(tokens * 0.01).astype(float)
    drawn = generator.integers(200, size=(4000, 200))
    low, high = np.quantile(words[drawn].sum(axis=1) / tokens[drawn].sum(axis=1), (0.025, 0.975))
    assert ratio_interval(words, tokens, 0) == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize(("numerators", "denominators"), [([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_a_ratio_needs_matching_positive_denominators(numerators, denominators):
    with pytest.raises(ValueError, match="denominator"):
        ratio_interval(numerators, denominators, 0)


def test_wilson_interval_has_its_closed_form():
    k, n, z = 7, 30, 1.959963984540054
    centre = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    assert binomial_interval(k, n) == pytest.approx((centre - half, centre + half))


def test_exact_interval_has_its_closed_forms():
    assert binomial_interval(0, 30, method="exact") == pytest.approx((0.0, 1 - 0.025 ** (1 / 30)))
    low, high = binomial_interval(7, 30, method="exact")

    def at_least(k, p):
        return sum(comb(30, i) * p**i * (1 - p) ** (30 - i) for i in range(k, 31))

    assert at_least(7, low) == pytest.approx(0.025)
    assert 1 - at_least(8, high) == pytest.approx(0.025)


def test_a_binomial_interval_needs_trials():
    with pytest.raises(ValueError, match="trial"):
        binomial_interval(0, 0)


def test_holm_matches_a_hand_made_family():
    # Sorted: .01*4, .02*3, .03*2, .04*1 -> .04, .06, .06, .06 (never decreasing).
    assert holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, float("nan")])
