"""Intervals and verdicts over training seeds and problems: hand-made numbers, limits, and coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from selfdistill.seeds import Runs, difference, mean, sign_flip_p_value

SHARE = (0.0, 1.0)


def trained(values):
    return Runs.of(values, is_trained=True, bounds=SHARE)


def base(values):
    return Runs.of([values], is_trained=False, bounds=SHARE)


def test_a_base_model_has_the_t_interval_over_problems():
    values = np.array([0.0, 0.25, 0.5, 1.0, 0.75, 0.5, 0.25, 1.0])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean(base(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.over == "problems"


def test_a_paired_difference_of_base_models_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.random(40), rng.random(40)
    found, expected = difference(base(a), base(b)), stats.ttest_rel(a, b)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    assert list(found)[1:] == pytest.approx(list(expected.confidence_interval(0.95)))
    assert difference(base(b), base(a)).p_value() == pytest.approx(found.p_value())


def test_seeds_that_differ_alike_on_every_problem_give_the_t_interval_over_seeds():
    """Without spread over problems all that varies is the seed: three values, two degrees of freedom."""
    means = np.array([0.774, 0.842, 0.899])
    found = mean(trained(np.repeat(means[:, None], 576, axis=1)))
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.over == "seeds and problems"


def test_the_seeds_of_the_demo_are_far_wider_than_its_problems():
    """GRPO of the demo was printed as 83.9 [81.5, 86.2] while its seeds are 77.4, 84.2 and 89.9."""
    rng = np.random.default_rng(1)
    scores = rng.random((3, 576)) < np.array([0.774, 0.842, 0.899])[:, None]
    found = mean(trained(scores))
    assert found.high - found.low > 0.25
    over_problems = mean(base(scores.mean(axis=0)))
    assert over_problems.high - over_problems.low < 0.06


def test_parts_are_those_of_the_crossed_analysis_of_variance():
    """Worked by hand for two seeds and two problems."""
    runs = trained([[0.0, 0.5], [0.5, 1.0]])
    # Means of seeds 0.25 and 0.75, of problems 0.25 and 0.75, nothing left: v_S = v_P = 0.125 / 2.
    (problems, seeds) = mean(runs).parts
    assert (problems.variance, problems.freedom) == pytest.approx((0.0625, 1))
    assert (seeds.variance, seeds.freedom) == pytest.approx((0.0625, 1))


def test_seeds_within_the_noise_of_sampling_add_nothing():
    """Two seeds with equal means: 0 is less than what is left over."""
    assert len(mean(trained([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])).parts) == 1


def test_the_quantile_of_two_parts_is_halfway_between_two_rules():
    """Worked by hand: equal parts with 1 degree of freedom each have 2 in Welch's sum."""
    found = mean(Runs.of([[0.0, 0.5], [0.5, 1.0]], is_trained=True))
    quantile = (stats.t.ppf(0.975, 1) + stats.t.ppf(0.975, 2)) / 2
    assert found.high - 0.5 == pytest.approx(quantile * (2 * 0.0625) ** 0.5)


def test_freedom_of_two_sets_of_seeds_is_welchs():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, (3, 1)) + np.zeros((3, 50)), rng.normal(0, 3, (5, 1)) + np.zeros((5, 50))
    found = difference(Runs.of(a, is_trained=True), Runs.of(b, is_trained=True))
    expected = stats.ttest_ind(a[:, 0], b[:, 0], equal_var=False)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.parts[1].freedom == pytest.approx(expected.df)


@pytest.mark.parametrize("other", [base([0.2] * 9 + [0.3]), trained(np.full((3, 10), 0.2))])
def test_one_seed_is_said(other):
    found = difference(trained([[0.9] * 9 + [0.8]]), other)
    assert found.has_one_seed
    assert found.over == "problems, one seed"


@pytest.mark.parametrize("problems", [1, 2, 3, 4, 5])
def test_five_problems_or_fewer_decide_nothing(problems):
    found = difference(trained(np.ones((3, problems))), base([0.0] * problems))
    assert found.p_value() > 0.05


def test_many_problems_all_alike_are_decided_and_have_an_exact_interval():
    found = difference(trained(np.ones((3, 30))), base([0.0] * 30))
    assert found.p_value() == pytest.approx(2 / 2**30)
    assert list(found) == pytest.approx([1.0, 1 - 2 * (1 - 0.025 ** (1 / 30)), 1.0])
    right = mean(trained(np.ones((3, 30))))
    assert right.low == pytest.approx(stats.binomtest(30, 30).proportion_ci(method="exact").low)
    assert right.high == 1.0


def test_no_interval_of_a_length_goes_below_zero():
    lengths = [[1.0, 2.0], [1.0, 2.0], [30.0, 31.0]]
    free, bounded = (mean(Runs.of(lengths, is_trained=True, bounds=b)) for b in (None, (0.0, np.inf)))
    assert free.low < 0 == bounded.low and bounded.high == free.high
    free, bounded = (mean(Runs.of([[3.0] * 9], is_trained=False, bounds=b)) for b in (None, (0.0, np.inf)))
    assert list(bounded) == list(free) == [3.0, 3.0, 3.0]


def test_no_difference_at_all_is_not_decided():
    same = np.full((3, 20), 0.4)
    assert difference(trained(same), trained(same)).p_value() == 1.0


def test_one_problem_has_no_interval():
    found = mean(trained([[0.5], [0.7]]))
    assert np.isnan(found.low) and np.isnan(found.high)


def test_sign_flips_are_counted():
    # Of the 8 sums of +-1 +-2 +-3 only +-6 is as far as 6.
    assert sign_flip_p_value([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_p_value([1.0, -2.0, 3.0]) == 6 / 8


def test_a_p_value_and_its_interval_agree():
    rng = np.random.default_rng(3)
    for _ in range(50):
        a, b = rng.random((3, 25)) + rng.normal(0, 0.2, (3, 1)), rng.random((3, 25))
        found = difference(Runs.of(a, is_trained=True), Runs.of(b, is_trained=True))
        for level in (0.5, 0.95, 0.999):
            low, high = found.interval(level)
            assert (low <= 0 <= high) == (found.p_value() >= 1 - level)
        assert found.p_value(found.low) == pytest.approx(0.05)


@pytest.mark.parametrize("values", [[0.1, 0.2], [[]], [[float("nan")]]])
def test_what_is_no_matrix_of_scores_is_an_error(values):
    with pytest.raises(ValueError, match="seeds x problems"):
        Runs.of(values, is_trained=True)


def test_other_problems_are_an_error():
    with pytest.raises(ValueError, match="same problems"):
        difference(base([0.0, 1.0]), base([0.0, 1.0, 1.0]))


def scores(rng, chance_P, deviation, k, seeds=3):
    """[S, P] shares of k samples that are right; each seed moves every problem by as much; reflected into [0, 1]."""
    wanted = chance_P + rng.uniform(-0.1, 0.1, chance_P.shape) + rng.normal(0, deviation, (seeds, 1))
    return rng.binomial(k, 1 - np.abs(1 - np.abs(wanted))) / k


@pytest.mark.parametrize("k", [1, 16])
@pytest.mark.parametrize("problems", [30, 192, 576])
def test_coverage_and_false_verdicts(problems, k):
    """3 against 3 seeds without a true difference: `trials` for each standard deviation of the seeds.

    Bounds are 93 to 97 % of intervals and 6 % of verdicts, and three standard errors of the simulation.
    """
    rng = np.random.default_rng(7)
    trials = 1000
    for deviation in (0.0, 0.011, 0.03, 0.054, 0.06):
        held = wrong = 0
        for _ in range(trials):
            chance_P = rng.beta(1.5, 1.5, problems)
            a, b = (trained(scores(rng, chance_P, deviation, k)) for _ in range(2))
            held += sum(found.low <= 0.5 <= found.high for found in (mean(a), mean(b)))
            found = difference(a, b)
            wrong += not found.low <= 0 <= found.high
        noise = 3 * (0.05 * 0.95 / (2 * trials)) ** 0.5
        assert 0.93 - noise <= held / (2 * trials) <= 0.97 + noise, (deviation, held / (2 * trials))
        assert wrong / trials <= 0.06, (deviation, wrong / trials)


def test_the_tail_counts_all_spread_of_seeds():
    """Three seeds alike within the noise: Cochran and Cox's quantile of problems and seeds, not that of problems."""
    rng = np.random.default_rng(5)
    runs = trained((rng.random((3, 400)) < 0.5).astype(float))
    assert not runs.seeds_spread
    found = difference(runs, base([0.0] * 400))
    (problems,) = found.parts
    assert found.noise == runs.seed_part and found.noise.freedom == 2
    # At the p-value found, the deviation times Cochran and Cox's quantile is the distance from zero.
    q = 1 - found.family_p_value() / 2
    quantile = (problems.variance * stats.t.ppf(q, 399) + found.noise.variance * stats.t.ppf(q, 2)) / (
        problems.variance + found.noise.variance
    )
    assert quantile * (problems.variance + found.noise.variance) ** 0.5 == pytest.approx(found.value, rel=1e-6)
    assert found.family_p_value() > found.p_value()


def test_without_trained_runs_the_tail_is_the_same():
    rng = np.random.default_rng(0)
    found = difference(base(rng.random(40)), base(rng.random(40)))
    assert found.family_p_value() == pytest.approx(found.p_value())


@pytest.mark.parametrize(("deviation", "most"), [(0.0, 0.05), (0.03, 0.05), (0.06, 0.10)])
def test_false_verdicts_in_a_table_of_forty_comparisons(deviation, most):
    """Forty arms without any difference from the base, three seeds each: how often Holm finds one at all.

    Holm's first threshold is 5 % / 40; the bound has three standard errors of the simulation. With p-values of single
    comparisons 13 % of tables had a false verdict at 3 points, and 39 % at 6.
    """
    rng = np.random.default_rng(11)
    tables, arms, problems, k = 100, 40, 192, 4
    false = 0
    for _ in range(tables):
        chance_P = rng.beta(1.5, 1.5, problems)
        reference = base(rng.binomial(k, chance_P) / k)
        found = [difference(trained(null_scores(rng, chance_P, deviation, k)), reference) for _ in range(arms)]
        # Every quantile at this threshold is above 3.
        far = [d for d in found if abs(d.value) > 3 * sum(part.variance for part in d.parts) ** 0.5]
        false += any(d.family_p_value() <= 0.05 / arms for d in far)
    assert false / tables <= most + 3 * (most * (1 - most) / tables) ** 0.5, false / tables


def null_scores(rng, chance_P, deviation, k, seeds=3):
    """[S, P] as `scores`, without an interaction of seeds and problems; the mean over seeds is the base's."""
    wanted = chance_P + rng.normal(0, deviation, (seeds, 1))
    return rng.binomial(k, 1 - np.abs(1 - np.abs(wanted))) / k
