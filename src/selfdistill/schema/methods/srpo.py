"""SRPO as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import Aggregation, register_method
from selfdistill.schema.methods.demonstrations import DistillationSettings
from selfdistill.schema.methods.grpo import PolicySettings


@register_method("selfdistill.training.methods.srpo:SrpoMethod")
class Srpo(DistillationSettings, PolicySettings):
    """Right rollouts learn from their reward, wrong ones from the teacher where it is sure (docs/method.md 18.4)."""

    title: ClassVar[str] = "SRPO"

    name: Literal["srpo"] = "srpo"
    aggregation: Aggregation = Field("token_mean", description="How token losses become one number.")
    entropy_slope: float = Field(1.0, ge=0, description="Weight of a token: exp of minus this times T's entropy.")

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        """The teacher's entropies before the updates (with a pass of the policy), and its logits in them."""
        shown = super().teacher_prompts(prompt_tokens, completion_tokens)
        return (*shown, *shown, prompt_tokens)
