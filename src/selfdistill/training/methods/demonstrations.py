"""Rows of a method whose teacher is shown a correct completion of the same group (docs/method.md 3).

Right and wrong rollouts alike are distilled where the group holds a demonstration for them. The others are masked: no
forward pass, no loss, but counted in the denominator of the paper's aggregation. With `feedback` a rollout without a
demonstration is distilled from the teacher that has read what was wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.contexts import choose_demonstrations, demonstration_text, encode_teacher_prompt
from selfdistill.prompts import leaks_thinking
from selfdistill.rollouts import Rollout
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import DemonstrationSettings
from selfdistill.training.data import RowPlan
from selfdistill.training.methods.base import Policy, TrainingMethod

_MASKED = RowPlan(is_supervised=False, has_gradient=False)


class DemonstrationMethod(TrainingMethod):
    """Base of such methods; they add the loss. The teacher's prompt also has to leave room for a completion."""

    settings: DemonstrationSettings

    def __init__(self, settings: DemonstrationSettings, policy: Policy) -> None:
        super().__init__(settings, policy)
        self.max_truncated_share = settings.max_truncated_share
        self.max_prompt_tokens = settings.max_reprompt_tokens
        if policy.max_positions is not None:
            self.max_prompt_tokens = min(self.max_prompt_tokens, policy.max_positions - policy.max_completion_tokens)
        if self.max_prompt_tokens <= 0:
            raise UserError(
                f"on_policy.sampling.max_tokens = {policy.max_completion_tokens} leaves no room for a teacher prompt "
                f"in the model's {policy.max_positions} positions."
            )

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        chosen = choose_demonstrations(
            [rollout.reward for rollout in group], self.settings.success_threshold, self.settings.exclude_own_success
        )
        plans = {index: self._plan_with(group[index]) for index in set(chosen) if index is not None}
        return [
            self._plan_with_feedback(rollout) if plans.get(index, _MASKED) is _MASKED else plans[index]
            for rollout, index in zip(group, chosen, strict=True)
        ]

    def _plan_with_feedback(self, rollout: Rollout) -> RowPlan:
        """Without a demonstration the teacher may be shown what was wrong with the completion itself."""
        if not (self.settings.feedback and rollout.feedback):
            return _MASKED
        return RowPlan(teacher_prompt_ids=self._teacher_prompt(rollout, None, rollout.feedback)[0])

    def _plan_with(self, demonstration: Rollout) -> RowPlan:
        """The plan of every rollout that is shown this demonstration (they share one prompt)."""
        text = demonstration_text(demonstration.text, self.settings.context)
        if text is None:
            return _MASKED
        ids, is_truncated = self._teacher_prompt(demonstration, text)
        has_leaked = self.settings.context == "solution_no_think" and leaks_thinking(
            demonstration.text, is_open=self._opens_thinking(demonstration.prompt.prompt_ids)
        )
        return RowPlan(teacher_prompt_ids=ids, is_teacher_prompt_truncated=is_truncated, has_leaked_thinking=has_leaked)

    def _teacher_prompt(
        self, rollout: Rollout, solution: str | None, feedback: str | None = None
    ) -> tuple[list[int], bool]:
        """Token ids, and whether the solution was cut to fit."""
        return encode_teacher_prompt(
            self.policy.tokenizer,
            rollout.prompt.messages,
            self.settings.reprompt,
            solution,
            self.policy.thinking,
            self.max_prompt_tokens,
            feedback,
        )

    def _opens_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the chat template leaves the completion inside an open <think>."""
        return self.policy.tokenizer.decode(prompt_ids[-8:], skip_special_tokens=False).rstrip().endswith("<think>")
