"""RLCSD as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.credit import CreditSettings


@register_method("selfdistill.training.methods.rlcsd:RlcsdMethod")
class Rlcsd(CreditSettings):
    """A right demonstration against wrong ones: what both make likely is style and is not rewarded (18.2)."""

    title: ClassVar[str] = "RLCSD"

    name: Literal["rlcsd"] = "rlcsd"
    wrong: int = Field(4, gt=0, description="Most wrong completions of the group that are shown, each by itself.")
    temperature: float = Field(0.02, gt=0, description="Scale of the contrast inside tanh.")
    strength: float = Field(0.5, ge=0, description="Largest change of a token's advantage.")
    threshold: float = Field(0.02, ge=0, description="Smaller changes are left out.")

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        shown, own = super().teacher_prompts(prompt_tokens, completion_tokens)
        return (*[shown] * (1 + self.wrong), own)
