"""What methods share that learn from rewards and let a teacher say which tokens deserve them."""

from __future__ import annotations

from selfdistill.schema.methods.demonstrations import DemonstrationSettings
from selfdistill.schema.methods.grpo import PolicySettings


class CreditSettings(DemonstrationSettings, PolicySettings):
    """GRPO whose advantages a teacher with a context changes token by token (docs/method.md 18)."""

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        """The teacher's pass, and one of the policy: log-probs are compared before the updates of a step."""
        return (*super().teacher_prompts(prompt_tokens, completion_tokens), prompt_tokens)
