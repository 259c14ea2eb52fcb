"""What the engine asks of a method. The engine itself never asks which method it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selfdistill.losses import token_logprobs
from selfdistill.losses.aggregation import Aggregation
from selfdistill.rollouts import Rollout
from selfdistill.schema.methods import MethodSettings, Teacher
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


@dataclass(frozen=True)
class Policy:
    """What a method may need to know of the model it trains. `thinking` is the chat template's enable_thinking;
    `max_completion_tokens` is None for given completions, `max_positions` where the model states no limit.
    """

    tokenizer: Any
    thinking: bool | None = None
    max_completion_tokens: int | None = None
    max_positions: int | None = None


class TrainingMethod(ABC):
    """Base of all training classes: `plan` says what a row is trained on, `token_loss` how.

    `max_truncated_share`: training stops where more teacher prompts than this had to be cut.
    """

    max_truncated_share: float = 1.0

    def __init__(self, settings: MethodSettings, policy: Policy) -> None:
        self.settings = settings
        self.policy = policy
        self.teacher: Teacher | None = settings.second_network

    @property
    def aggregation(self) -> Aggregation:
        return self.settings.aggregation

    @property
    def shows_context(self) -> bool:
        """Whether the second network reads more than the student does; otherwise it is a reference."""
        return self.settings.shows_context

    @abstractmethod
    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        """One plan for each rollout of a group."""

    @abstractmethod
    def token_loss(self, tokens: Tokens) -> Tensor:
        """Loss of each token [n], before the sampler's correction and aggregation."""
