"""What the engine asks of a method. The engine itself never asks which method it runs.

to_regenerate(groups)  demonstrations that the policy writes anew first
contexts(groups)   teacher prompts by name, for every rollout of a step that has one
plan(group)        loss mask, gradient and advantage of each rollout
settle(plan)       decides on a row, when its teacher prompts are known
weigh(rows, step)  advantage of each token, from log-probs and entropies of the whole step (where asked for)
token_loss(tokens) loss of each token
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.losses.aggregation import Aggregation
from selfdistill.rollouts import Group, Rollout
from selfdistill.schema.common import ThinkingMarks
from selfdistill.schema.methods import MethodSettings, Teacher
from selfdistill.training.data import PromptText, RowPlan, RowStatistics, TeacherPrompt
from selfdistill.training.teacher import ShownLogits


@dataclass(frozen=True)
class Tokens:
    """n completion tokens of a chunk. Log-probs are those of the sampled tokens; only the student's carry gradients."""

    student_logits: Tensor  # [n, V]
    targets: Tensor  # [n] the sampled tokens
    logprobs: Tensor  # [n]
    old_logprobs: Tensor  # [n] under the policy before the step's first update
    advantages: Tensor  # [n]
    teachers: Mapping[str, ShownLogits] = field(default_factory=dict)  # by context, where any of the tokens has it
    rows: Tensor | None = None  # [n] place of the token's row in its mini-batch, from 0
    positions: Tensor | None = None  # [n] of the token in its completion, from 0
    step: int = 1

    def distil(self, names: Sequence[str], loss_of: Callable[..., Tensor]) -> Tensor:
        """`loss_of(these tokens, teacher logits of each name)` where the row has these contexts; 0 elsewhere [n].

        Raises ValueError where a row has some of the contexts only.
        """
        shown = [self.teachers.get(name) for name in names]
        if all(teacher is not None and teacher.is_shown is None for teacher in shown):
            return loss_of(self, *(teacher.logits for teacher in shown))
        zeros = self.student_logits[:, 0] * 0  # With a graph, so that a chunk without any teacher has a gradient.
        if all(teacher is None for teacher in shown):
            return zeros
        masks = [None if teacher is None else teacher.mask(len(self.targets)) for teacher in shown]
        if any(mask is None or not torch.equal(mask, masks[0]) for mask in masks):
            raise ValueError(f"a row has some of the contexts {', '.join(names)} but not all")
        losses = loss_of(self.select(masks[0]), *(teacher.logits for teacher in shown))
        return zeros.masked_scatter(masks[0], losses)

    def has(self, name: str) -> Tensor:
        """Whether a token's row has a context [n]."""
        if name in self.teachers:
            return self.teachers[name].mask(len(self.targets))
        return torch.zeros_like(self.targets, dtype=torch.bool)

    def select(self, mask: Tensor) -> Tokens:
        """The tokens of a mask [n], without their teachers."""
        return Tokens(
            self.student_logits[mask],
            self.targets[mask],
            self.logprobs[mask],
            self.old_logprobs[mask],
            self.advantages[mask],
            rows=None if self.rows is None else self.rows[mask],
            positions=None if self.positions is None else self.positions[mask],
            step=self.step,
        )


@dataclass(frozen=True)
class Policy:
    """What a method may need to know of the model it trains. `thinking` is the chat template's enable_thinking;
    `max_completion_tokens` is None for given completions, `max_positions` where the model states no limit,
    `thinking_marks` where they are found in the chat template.
    """

    tokenizer: Any
    thinking: bool | None = None
    max_completion_tokens: int | None = None
    max_positions: int | None = None
    thinking_marks: Sequence[ThinkingMarks] | None = None


class TrainingMethod(ABC):
    """Base of all training classes.

    `max_truncated_share`: training stops where more teacher prompts than this had to be cut.
    `weighs`: whether `weigh` is called, which costs one more pass of the policy and of the teacher before the updates.
    `state`: what the method carries from step to step, as JSON; part of the resume state.
    `weighed`: names of the contexts whose statistics `weigh` needs; None: all.
    `reads_logits`: whether `token_loss` needs the teacher's logits; otherwise it is not forwarded in the updates.
    """

    max_truncated_share: float = 1.0
    weighs: bool = False
    weighed: Sequence[str] | None = None
    reads_logits: bool = True

    def __init__(self, settings: MethodSettings, policy: Policy) -> None:
        self.settings = settings
        self.policy = policy
        self.teacher: Teacher | None = settings.second_network
        self.state: dict[str, Any] = {}

    @property
    def aggregation(self) -> Aggregation:
        return self.settings.aggregation

    @property
    def shows_context(self) -> bool:
        """Whether the second network reads more than the student does; otherwise it is a reference."""
        return self.settings.shows_context

    def to_regenerate(self, groups: Sequence[Group]) -> dict[tuple[int, int], PromptText]:
        """Rollouts (place of the group, place in it) that the policy writes anew, each with the prompt that shows it.

        It does so before the other functions are called, which find the result as `rollout.regenerated`. Every process
        of a training must return the same.
        """
        return {}

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        """The step's teacher prompts: for each name one entry per rollout, over all groups in their order.

        One pass of the second network per name. Metrics compare the student with the one named CONTEXT.
        """
        return {}

    @abstractmethod
    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        """One plan for each rollout of a group, without its teacher prompts."""

    def settle(self, plan: RowPlan) -> RowPlan:
        """The plan once its teacher prompts are known."""
        return plan

    def plan_step(self, groups: Sequence[Group]) -> list[list[RowPlan]]:
        """The plans of all rollouts of a step, group by group."""
        contexts = self.contexts(groups)
        shown = (
            {name: prompt for name, prompt in zip(contexts, row, strict=True) if prompt is not None}
            for row in zip(*contexts.values(), strict=True)
        )
        plans = [self.plan(group) for group in groups]
        if not contexts:
            return plans
        return [[self.settle(replace(plan, teachers=next(shown))) for plan in group] for group in plans]

    def weigh(self, rows: Sequence[RowStatistics], step: int) -> list[np.ndarray]:
        """`tokens.advantages` of each row [L], given all rows of the step that have a gradient, in their order.

        Every process of a training gets the same rows and must return the same. Here: the plan's, at every token.
        """
        return [np.full_like(row.student.logprobs, row.plan.advantage) for row in rows]

    def metrics(self) -> dict[str, float]:
        """Measures of the last step that only this method has; written as `method_<name>`."""
        return {}

    @abstractmethod
    def token_loss(self, tokens: Tokens) -> Tensor:
        """Loss of each token [n], before the sampler's correction and aggregation."""
