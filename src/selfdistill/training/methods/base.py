"""What the engine asks of a method. The engine itself never asks which method it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from selfdistill.losses import token_logprobs
from selfdistill.losses.aggregation import Aggregation
from selfdistill.rollouts import Rollout
from selfdistill.schema.methods import Teacher
from selfdistill.training.data import RowPlan


@dataclass(frozen=True)
class Tokens:
    """n completion tokens of a chunk. Log-probs are those of the sampled tokens; only the student's carry gradients."""

    student_logits: Tensor  # [n, V]
    teacher_logits: Tensor | None  # [n, V]
    targets: Tensor  # [n] the sampled tokens
    logprobs: Tensor  # [n]
    old_logprobs: Tensor  # [n] under the policy before the step's first update
    advantages: Tensor  # [n]

    @property
    def teacher_logprobs(self) -> Tensor:
        """The sampled tokens' log-probs under the teacher [n]."""
        return token_logprobs(self.teacher_logits, self.targets)


class TrainingMethod(Protocol):
    """`teacher`: the second network whose logits the loss needs, or None. `shows_context`: it reads more than the
    student does (else it is a reference). `max_truncated_share`: training stops above this share of cut teacher
    prompts.
    """

    aggregation: Aggregation
    teacher: Teacher | None
    shows_context: bool
    max_truncated_share: float

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        """One plan for each rollout of a group."""
        ...

    def token_loss(self, tokens: Tokens) -> Tensor:
        """Loss of each token [n], before the sampler's correction and aggregation."""
        ...
