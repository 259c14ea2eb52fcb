"""GRPO as the paper's baseline: advantage r - mean(group), clip-higher, dual clip, no KL unless asked for
(docs/method.md 5). With a KL penalty the initial policy is kept as reference, and every row has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from selfdistill.losses import group_advantages, grpo_token_loss, kl_penalty, token_logprobs
from selfdistill.rollouts import Group, Rollout
from selfdistill.schema.methods import Grpo, PolicySettings
from selfdistill.training.data import PLAIN, RowPlan, TeacherPrompt
from selfdistill.training.methods.base import Tokens, TrainingMethod


def advantage_plans(group: Sequence[Rollout], settings: PolicySettings) -> list[RowPlan]:
    """The advantage of each rollout; rows with advantage 0 have no gradient."""
    rewards_G = torch.tensor([rollout.reward for rollout in group], dtype=torch.float64)
    advantages_G = group_advantages(rewards_G, divide_by_std=settings.divide_by_std)
    return [RowPlan(has_gradient=value != 0, advantage=value) for value in advantages_G.tolist()]


def policy_loss(tokens: Tokens, settings: PolicySettings) -> Tensor:
    """The clipped loss of each token [n]."""
    return grpo_token_loss(
        tokens.logprobs,
        tokens.old_logprobs,
        tokens.advantages,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
    )


class GrpoMethod(TrainingMethod):
    """Rows with advantage 0 have loss and gradient 0: they are not forwarded, yet count in every denominator."""

    settings: Grpo

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        return advantage_plans(group, self.settings)

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        if self.teacher is None:
            return {}
        return {PLAIN: [TeacherPrompt(rollout.prompt.prompt_ids) for group in groups for rollout in group]}

    def settle(self, plan: RowPlan) -> RowPlan:
        """With a KL penalty every row has a gradient."""
        return replace(plan, has_gradient=True) if PLAIN in plan.teachers else plan

    def token_loss(self, tokens: Tokens) -> Tensor:
        losses = policy_loss(tokens, self.settings)
        if self.teacher is None:
            return losses
        reference = token_logprobs(tokens.teachers[PLAIN].logits, tokens.targets)
        return losses + self.settings.kl_coefficient * kl_penalty(tokens.logprobs, reference)
