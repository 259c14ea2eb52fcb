"""GRPO as the paper's baseline: advantage r - mean(group), clip-higher, dual clip, no KL unless asked for
(docs/method.md 5). With a KL penalty the initial policy is kept as reference, and every row has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.losses import group_advantages, grpo_token_loss, kl_penalty
from selfdistill.rollouts import Rollout
from selfdistill.schema.methods import Grpo
from selfdistill.training.data import RowPlan
from selfdistill.training.methods.base import Tokens, TrainingMethod


class GrpoMethod(TrainingMethod):
    """Rows with advantage 0 have loss and gradient 0: they are not forwarded, yet count in every denominator."""

    settings: Grpo

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        rewards_G = torch.tensor([rollout.reward for rollout in group], dtype=torch.float64)
        advantages_G = group_advantages(rewards_G, divide_by_std=self.settings.divide_by_std)
        if self.teacher is None:
            return [RowPlan(has_gradient=value != 0, advantage=value) for value in advantages_G.tolist()]
        prompt_ids = group[0].prompt.prompt_ids
        return [RowPlan(advantage=value, teacher_prompt_ids=prompt_ids) for value in advantages_G.tolist()]

    def token_loss(self, tokens: Tokens) -> Tensor:
        losses = grpo_token_loss(
            tokens.logprobs,
            tokens.old_logprobs,
            tokens.advantages,
            clip_low=self.settings.clip_low,
            clip_high=self.settings.clip_high,
            dual_clip=self.settings.dual_clip,
        )
        if self.teacher is None:
            return losses
        return losses + self.settings.kl_coefficient * kl_penalty(tokens.logprobs, tokens.teacher_logprobs)
