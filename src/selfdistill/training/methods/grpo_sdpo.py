"""GRPO and SDPO in one loss (docs/method.md 18.5): loss of GRPO + w loss of SDPO; w stays or fades."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from selfdistill.rollouts import Rollout
from selfdistill.schema.methods import GrpoSdpo
from selfdistill.training.data import CONTEXT, RowPlan
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.credit import decayed
from selfdistill.training.methods.distillation import DistillationMethod
from selfdistill.training.methods.grpo import advantage_plans, policy_loss


class GrpoSdpoMethod(DistillationMethod):
    """Every rollout counts in the denominators; one without a demonstration has the loss of GRPO alone."""

    settings: GrpoSdpo

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        return advantage_plans(group, self.settings)

    def settle(self, plan: RowPlan) -> RowPlan:
        return replace(plan, has_gradient=plan.has_gradient or CONTEXT in plan.teachers)

    def token_loss(self, tokens: Tokens) -> Tensor:
        weight = decayed(self.settings.weight, self.settings.decay_steps, tokens.step)
        return policy_loss(tokens, self.settings) + weight * super().token_loss(tokens)
