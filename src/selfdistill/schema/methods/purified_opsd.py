"""Purified OPSD as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.demonstrations import DistillationSettings


@register_method("selfdistill.training.methods.purified_opsd:PurifiedOpsdMethod")
class PurifiedOpsd(DistillationSettings):
    """The initial policy, moved by what the demonstration says about this question alone (docs/method.md 18.6)."""

    title: ClassVar[str] = "Purified OPSD"

    name: Literal["purified_opsd"] = "purified_opsd"
    evidence_cap: float = Field(10.0, gt=0, description="Bound on what a token's log-prob can gain or lose, in nats.")
    temperature: float = Field(1.0, gt=0, description="The bounded evidence is divided by this.")

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        shown = super().teacher_prompts(prompt_tokens, completion_tokens)
        return (*shown, prompt_tokens, *shown)
