"""GRPO as the paper's baseline: advantage r - mean(group), clip-higher, dual clip, no KL (docs/method.md 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.losses import group_advantages, grpo_token_loss
from selfdistill.schema.methods import Grpo
from selfdistill.training.data import Rollout, RowPlan
from selfdistill.training.methods.base import Tokens


class GrpoMethod:
    """Rows with advantage 0 have loss and gradient 0: they are not forwarded, yet count in every denominator."""

    teacher = None
    max_truncated_share = 1.0

    def __init__(self, settings: Grpo) -> None:
        self.settings = settings
        self.aggregation = settings.aggregation

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        rewards_G = torch.tensor([rollout.reward for rollout in group], dtype=torch.float64)
        advantages_G = group_advantages(rewards_G, divide_by_std=self.settings.divide_by_std)
        return [RowPlan(has_gradient=value != 0, advantage=value) for value in advantages_G.tolist()]

    def token_loss(self, tokens: Tokens) -> Tensor:
        return grpo_token_loss(
            tokens.logprobs,
            tokens.old_logprobs,
            tokens.advantages,
            clip_low=self.settings.clip_low,
            clip_high=self.settings.clip_high,
            dual_clip=self.settings.dual_clip,
        )
