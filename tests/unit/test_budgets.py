"""A token budget for each prompt, with samplers that know one limit: the groups, and what is cut."""

from __future__ import annotations

import pytest

from selfdistill.generation.budgets import budget_groups, generate_within
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.schema.common import Sampling
from tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("positions", "groups"),
    [
        (None, [[1, 0, 3]]),
        (100, [[1, 0, 3]]),
        (22, [[1, 0, 3]]),
        (21, [[1, 0], [3]]),  # 12 + 10 is too much.
        (14, [[1], [0], [3]]),
    ],
)
def test_prompts_share_a_call_where_the_longest_has_room_for_the_largest_budget(positions, groups):
    assert budget_groups([6, 4, 9, 12], [8, 10, 0, 2], positions) == groups


def test_each_completion_is_what_its_own_limit_gives():
    tokenizer = tiny_tokenizer()
    sampler = TorchSampler(tiny_model(len(tokenizer), std=0.4), [tokenizer.eos_token_id])
    prompts, budgets = [[5, 6, 7], [8, 9], [7] * 9, [6]], [2, 30, 7, 0]
    seeds = [[place, 10 + place] for place in range(4)]
    sampling = Sampling(max_tokens=1)
    groups = budget_groups(list(map(len, prompts)), budgets, 33)
    assert len(groups) == 2
    found = generate_within(sampler, groups, prompts, seeds, sampling, budgets)
    for place, budget in enumerate(budgets[:3]):
        own = sampling.model_copy(update={"max_tokens": budget})
        for ours, alone in zip(found[place], sampler.generate([prompts[place]], [seeds[place]], own)[0], strict=True):
            assert (ours.token_ids, ours.stop_reason) == (alone.token_ids, alone.stop_reason)
            assert ours.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    assert {one.stop_reason for group in found for one in group} >= {"length"}
    assert [(one.token_ids, one.stop_reason) for one in found[3]] == [([], "length")] * 2
