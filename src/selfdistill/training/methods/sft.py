"""Cross-entropy on the tokens of given completions (docs/method.md 6)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from selfdistill.rollouts import Rollout
from selfdistill.schema.methods import Sft
from selfdistill.training.data import RowPlan
from selfdistill.training.methods.base import Tokens


class SftMethod:
    """Every row is trained alike."""

    teacher = None
    shows_context = False
    max_truncated_share = 1.0

    def __init__(self, settings: Sft) -> None:
        self.aggregation = settings.aggregation

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        return [RowPlan() for _ in group]

    def token_loss(self, tokens: Tokens) -> Tensor:
        return -tokens.logprobs
