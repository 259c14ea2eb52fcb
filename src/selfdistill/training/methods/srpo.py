"""SRPO (arXiv 2604.02288): right rollouts learn from rewards, wrong ones from a teacher (docs/method.md 18.4).

right, or without a demonstration:     loss of GRPO
wrong, with a demonstration:           w JSD(S, T)     w proportional to exp(-beta H_T), with mean 1 over its tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from selfdistill.rollouts import Group, Rollout
from selfdistill.schema.methods import Srpo
from selfdistill.training.data import CONTEXT, RowPlan, RowStatistics, TeacherPrompt
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.distillation import DistillationMethod
from selfdistill.training.methods.grpo import advantage_plans, policy_loss


class SrpoMethod(DistillationMethod):
    """`tokens.advantages` holds A of a right rollout and w of a wrong one."""

    settings: Srpo
    weighs = True

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        rollouts = (rollout for group in groups for rollout in group)
        shown = zip(super().contexts(groups)[CONTEXT], rollouts, strict=True)
        return {CONTEXT: [None if r.reward >= self.settings.success_threshold else prompt for prompt, r in shown]}

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        return advantage_plans(group, self.settings)

    def settle(self, plan: RowPlan) -> RowPlan:
        return replace(plan, has_gradient=plan.has_gradient or CONTEXT in plan.teachers)

    def weigh(self, rows: Sequence[RowStatistics], step: int) -> list[np.ndarray]:
        plain = super().weigh(rows, step)
        return [
            self._weights(row.teachers[CONTEXT].entropy) if CONTEXT in row.teachers else advantages
            for row, advantages in zip(rows, plain, strict=True)
        ]

    def _weights(self, entropy_L: np.ndarray) -> np.ndarray:
        weights = np.exp(-self.settings.entropy_slope * (entropy_L - entropy_L.min()))
        return weights / weights.mean()

    def token_loss(self, tokens: Tokens) -> Tensor:
        taught = tokens.has(CONTEXT)
        rewarded = policy_loss(replace(tokens, advantages=torch.where(taught, 0.0, tokens.advantages)), self.settings)
        return rewarded + torch.where(taught, tokens.advantages, 0.0) * super().token_loss(tokens)
