"""SDPO: distil the policy that has seen a correct solution into the policy that has not (docs/method.md 2 to 4).

Right and wrong rollouts alike are distilled, where the group holds a demonstration for them; the others are masked:
not forwarded, no loss, still in the denominator of the paper's aggregation. With `feedback` a rollout without a
demonstration is distilled from the teacher that has read what was wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from selfdistill.contexts import choose_demonstrations, demonstration_text, encode_teacher_prompt
from selfdistill.losses import divergence, importance_weights, sampled_token_loss
from selfdistill.prompts import leaks_thinking
from selfdistill.rollouts import Rollout
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Sdpo
from selfdistill.training.data import RowPlan
from selfdistill.training.methods.base import Tokens

_MASKED = RowPlan(is_supervised=False, has_gradient=False)


class SdpoMethod:
    """`max_positions` and `max_completion_tokens` bound the teacher's prompt from above, besides the setting."""

    shows_context = True

    def __init__(
        self,
        settings: Sdpo,
        tokenizer: Any,
        thinking: bool | None,
        max_completion_tokens: int,
        max_positions: int | None,
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.thinking = thinking
        self.aggregation = settings.aggregation
        self.teacher = settings.teacher
        self.max_truncated_share = settings.max_truncated_share
        self.max_prompt_tokens = settings.max_reprompt_tokens
        if max_positions is not None:
            self.max_prompt_tokens = min(self.max_prompt_tokens, max_positions - max_completion_tokens)
        if self.max_prompt_tokens <= 0:
            raise UserError(
                f"on_policy.sampling.max_tokens = {max_completion_tokens} leaves no room for a teacher prompt in the "
                f"model's {max_positions} positions."
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
        ids, _ = encode_teacher_prompt(
            self.tokenizer,
            rollout.prompt.messages,
            self.settings.reprompt,
            None,
            self.thinking,
            self.max_prompt_tokens,
            rollout.feedback,
        )
        return RowPlan(teacher_prompt_ids=ids)

    def _plan_with(self, demonstration: Rollout) -> RowPlan:
        """The plan of every rollout that is shown this demonstration (they share one prompt)."""
        text = demonstration_text(demonstration.text, self.settings.context)
        if text is None:
            return _MASKED
        prompt = demonstration.prompt
        ids, is_truncated = encode_teacher_prompt(
            self.tokenizer,
            prompt.messages,
            self.settings.reprompt,
            text,
            self.thinking,
            self.max_prompt_tokens,
        )
        has_leaked = self.settings.context == "solution_no_think" and leaks_thinking(
            demonstration.text, is_open=self._opens_thinking(prompt.prompt_ids)
        )
        return RowPlan(teacher_prompt_ids=ids, is_teacher_prompt_truncated=is_truncated, has_leaked_thinking=has_leaked)

    def _opens_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the chat template leaves the completion inside an open <think>."""
        return self.tokenizer.decode(prompt_ids[-8:], skip_special_tokens=False).rstrip().endswith("<think>")

    def token_loss(self, tokens: Tokens) -> Tensor:
        losses = self._divergence(tokens)
        return losses * importance_weights(tokens.logprobs, tokens.old_logprobs, self.settings.importance_clip)

    def _divergence(self, tokens: Tokens) -> Tensor:
        if self.settings.sampled_token:
            return sampled_token_loss(tokens.logprobs, tokens.teacher_logprobs)
        return divergence(
            tokens.student_logits,
            tokens.teacher_logits,
            alpha=self.settings.alpha,
            top_k=self.settings.top_k,
            add_tail=self.settings.add_tail,
        )
