"""Completions near or at the length limit: a soft penalty on their reward, and a mask (DAPO, arXiv 2503.14476).

    penalty(n) = clip( (n - (limit - buffer)) / buffer, 0, 1 )       n tokens

Both are off unless asked for. The penalty changes what the method sees, not what is recorded as reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfdistill.rollouts import Group, Rollout
from selfdistill.schema.training import OnPolicy
from selfdistill.training.data import RowPlan

Plans = list[list[RowPlan]]


def penalty(rollout: Rollout, settings: OnPolicy) -> float:
    """What is taken from a rollout's reward, from 0 to 1."""
    if settings.overlong_buffer is None:
        return 0.0
    over = len(rollout.completion.token_ids) - (settings.sampling.max_tokens - settings.overlong_buffer)
    return min(max(over / settings.overlong_buffer, 0.0), 1.0)


def penalised(groups: Sequence[Group], settings: OnPolicy) -> Sequence[Group]:
    """The groups with the rewards that the method sees."""
    if settings.overlong_buffer is None:
        return groups
    return [[replace(rollout, reward=rollout.reward - penalty(rollout, settings)) for rollout in g] for g in groups]


def masked(groups: Sequence[Group], plans: Plans, settings: OnPolicy) -> Plans:
    """The plans without loss on completions that were cut off; they still count in their group's mean reward."""
    if not settings.mask_truncated:
        return plans
    return [
        [
            replace(plan, is_supervised=False, has_gradient=False) if _is_cut(rollout) else plan
            for rollout, plan in zip(group, group_plans, strict=True)
        ]
        for group, group_plans in zip(groups, plans, strict=True)
    ]


def counts(groups: Sequence[Group], settings: OnPolicy) -> dict[str, float]:
    """Metrics of the step, for what is on."""
    rollouts = [rollout for group in groups for rollout in group]
    found = {}
    if settings.overlong_buffer is not None:
        found["overlong_penalty_mean"] = sum(penalty(rollout, settings) for rollout in rollouts) / len(rollouts)
    if settings.mask_truncated:
        found["masked_truncated_share"] = sum(map(_is_cut, rollouts)) / len(rollouts)
    return found


def _is_cut(rollout: Rollout) -> bool:
    return rollout.completion.stop_reason == "length"
