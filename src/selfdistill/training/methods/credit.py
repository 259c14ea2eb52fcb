"""Methods that learn from rewards and let a teacher with a context say which tokens deserve them (docs/method.md 18).

The advantage of a rollout becomes one number per token, from log-probs under the policy and under its teacher before
the updates of the step. The loss is GRPO's. A rollout without the context keeps its advantage at every token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from selfdistill.rollouts import Rollout
from selfdistill.schema.methods.credit import CreditSettings
from selfdistill.training.data import CONTEXT, RowPlan, RowStatistics
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.demonstrations import DemonstrationMethod
from selfdistill.training.methods.grpo import advantage_plans, policy_loss


class CreditMethod(DemonstrationMethod):
    """Base of such methods; they add `credit`."""

    settings: CreditSettings
    weighs = True
    reads_logits = False

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        return advantage_plans(group, self.settings)

    def settle(self, plan: RowPlan) -> RowPlan:
        return plan

    def weigh(self, rows: Sequence[RowStatistics], step: int) -> list[np.ndarray]:
        plain = super().weigh(rows, step)
        return [
            self.credit(row, step) if CONTEXT in row.teachers else advantages
            for row, advantages in zip(rows, plain, strict=True)
        ]

    @abstractmethod
    def credit(self, row: RowStatistics, step: int) -> np.ndarray:
        """The advantage of each token [L] of a row with a context."""

    def token_loss(self, tokens: Tokens) -> Tensor:
        return policy_loss(tokens, self.settings)


def log_ratio(row: RowStatistics) -> np.ndarray:
    """u = log T(y) - log S(y) of the sampled tokens [L]: positive where the teacher finds them more likely."""
    return row.teachers[CONTEXT].logprobs - row.student.logprobs


def decayed(value: float, steps: int | None, step: int) -> float:
    """`value` at step 1, falling in a line to 0 after `steps` steps; None: it stays."""
    return value if steps is None else value * max(0.0, 1 - (step - 1) / steps)
