"""Soft penalty on long completions and the mask of cut ones: numbers by hand, and a whole run."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import ValidationError

from selfdistill.generation.base import Completion
from selfdistill.schema.common import Sampling
from selfdistill.schema.training import OnPolicy
from selfdistill.training import overlong
from selfdistill.training.methods import make_method
from small_specs import small
from test_training_contexts import group
from training_session import GRPO, TOKENIZER, Session, make_spec

LIMIT = Sampling(max_tokens=10)


def on_policy(**changes) -> OnPolicy:
    return small(OnPolicy, group_size=4, sampling=LIMIT, **changes)


def of_lengths(*lengths: int) -> list:
    """Right completions of these lengths; one of 10 tokens was cut off."""
    return [
        dataclasses.replace(r, completion=Completion([7] * n, [0.0] * n, "length" if n == 10 else "eos"))
        for r, n in zip(group(0, *[1.0] * len(lengths)), lengths, strict=True)
    ]


def test_the_penalty_grows_in_a_line_over_the_buffer():
    """Limit 10, buffer 4: free up to 6 tokens, then 1/4 for each."""
    settings = on_policy(overlong_buffer=4)
    groups = [of_lengths(2, 6, 7, 8, 9, 10)]
    assert [r.reward for r in overlong.penalised(groups, settings)[0]] == [1, 1, 0.75, 0.5, 0.25, 0]
    assert overlong.counts(groups, settings) == {"overlong_penalty_mean": pytest.approx(2.5 / 6)}
    assert [r.reward for r in groups[0]] == [1] * 6


def test_advantages_are_of_the_penalised_rewards():
    groups = overlong.penalised([of_lengths(2, 8, 10, 2)], on_policy(overlong_buffer=4))
    plans = make_method(make_spec(GRPO), TOKENIZER, 256).plan_step(groups)
    assert [plan.advantage for plan in plans[0]] == pytest.approx([0.375, -0.125, -0.625, 0.375])


def test_cut_completions_have_no_loss_and_stay_in_the_mean():
    settings, groups = on_policy(mask_truncated=True), [of_lengths(2, 10, 3)]
    groups[0][0] = dataclasses.replace(groups[0][0], reward=0.0)
    plans = make_method(make_spec(GRPO), TOKENIZER, 256).plan_step(groups)
    found = overlong.masked(groups, plans, settings)[0]
    assert [(p.is_supervised, p.has_gradient) for p in found] == [(True, True), (False, False), (True, True)]
    assert [p.advantage for p in found] == pytest.approx([-2 / 3, 1 / 3, 1 / 3])
    assert overlong.counts(groups, settings) == {"masked_truncated_share": pytest.approx(1 / 3)}


def test_both_are_off_by_default():
    settings, groups = on_policy(), [of_lengths(2, 10)]
    plans = [[object(), object()]]
    assert overlong.penalised(groups, settings) is groups and overlong.masked(groups, plans, settings) is plans
    assert overlong.counts(groups, settings) == {}


def test_a_buffer_longer_than_the_limit_is_refused():
    with pytest.raises(ValidationError, match=r"overlong_buffer \(11\) is above sampling.max_tokens \(10\)"):
        on_policy(overlong_buffer=11)


def test_a_run_with_both_counts_them_and_records_the_graders_reward(tmp_path):
    spec = make_spec(GRPO, steps=2, on_policy=on_policy(overlong_buffer=4, mask_truncated=True))
    session = Session(tmp_path, spec)
    session.run()
    for line in session.metrics():
        assert line["masked_truncated_share"] == line["truncation_rate"]
        assert 0 <= line["overlong_penalty_mean"] <= 1
    recorded = [row["reward"] for rows in session.rollouts.values() for row in rows]
    assert set(recorded) <= {0.0, 1.0}
