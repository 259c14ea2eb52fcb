"""Groups without a signal are replaced by groups of other problems (dynamic sampling of DAPO, arXiv 2503.14476).

Off unless asked for. A group has a signal where some rollout of it has (`RowPlan.has_signal`): under GRPO where its
rewards differ, under SDPO where a demonstration was found. A round draws a new problem for each place of the step whose
group has none. What is drawn is a function of seed, step, round and the groups before, so resumed runs and any number
of processes draw the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from selfdistill.generation import sample_seed
from selfdistill.rollouts import Group, Prompt
from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.data import RowPlan, draw_indices

#: (prompts, place of the first one among all that the step has drawn) -> their graded groups.
SampleGroups = Callable[[Sequence[Prompt], int], list[Group]]


def sample_with_signal(
    spec: TrainSpec,
    step: int,
    prompts: Sequence[Prompt],
    sample: SampleGroups,
    plan: Callable[[list[Group]], Sequence[Sequence[RowPlan]]],
) -> tuple[list[Group], list[Group], dict[str, float]]:
    """The groups that a step learns from, all groups that it drew, and counts as metrics (none while refilling is off).

    A place keeps its last group when the rounds are used up. Raises UserError where then no group has a signal.
    """
    drawn = draw_indices(spec, step, len(prompts))
    groups = sample([prompts[index] for index in drawn], 0)
    rounds = spec.on_policy.refill_rounds
    if not rounds:
        return groups, groups, {}
    seen, used = list(groups), 0
    while (empty := without_signal(plan(groups))) and used < rounds:
        used += 1
        chosen = refill_indices(spec, step, used, drawn, len(prompts), len(empty))
        fresh = sample([prompts[index] for index in chosen], len(drawn))
        drawn, seen = drawn + chosen, seen + fresh
        for place, group in zip(empty, fresh, strict=True):
            groups[place] = group
    if len(empty) == len(groups):
        raise UserError(
            f"step {step}: none of {len(seen)} groups has a learning signal after refill_rounds = {rounds} (mean "
            f"reward {_mean_reward(seen):.3f}). Use problems that the model sometimes solves, a larger group_size or "
            "refill_rounds, or check the grader."
        )
    return groups, seen, {
        "groups_drawn": len(seen),
        "groups_with_signal": len(groups) - len(empty),
        "refill_rounds_used": used,
        "kept_reward_mean": _mean_reward(groups),
    }  # fmt: skip


def _mean_reward(groups: Sequence[Group]) -> float:
    rewards = [rollout.reward for group in groups for rollout in group]
    return sum(rewards) / len(rewards)


def without_signal(plans: Sequence[Sequence[RowPlan]]) -> list[int]:
    """Places of the groups in which no rollout has a signal."""
    return [place for place, group in enumerate(plans) if not any(plan.has_signal for plan in group)]


def refill_indices(spec: TrainSpec, step: int, round_: int, drawn: Sequence[int], count: int, size: int) -> list[int]:
    """Indices, out of `count` prompts, that a round draws: none that the step has drawn, if enough are left."""
    left = sorted(set(range(count)) - set(drawn))
    generator = np.random.default_rng(sample_seed(spec.seed, "refill", step, round_))
    if len(left) < size:
        return generator.integers(count, size=size).tolist()
    return generator.choice(left, size=size, replace=False).tolist()
