"""Cross-entropy on the tokens of given completions (docs/method.md 6)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from selfdistill.rollouts import Rollout
from selfdistill.training.data import RowPlan
from selfdistill.training.methods.base import Tokens, TrainingMethod


class SftMethod(TrainingMethod):
    """Every row is trained alike."""

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        return [RowPlan() for _ in group]

    def token_loss(self, tokens: Tokens) -> Tensor:
        return -tokens.logprobs
