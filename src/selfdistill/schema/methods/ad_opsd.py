"""AD-OPSD and its plain form as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.demonstrations import FixedTeacherSettings


class AnchoredSettings(FixedTeacherSettings):
    """Distillation that follows the initial policy where the student is least sure."""

    entropy_share: float = Field(0.2, gt=0, le=1, description="Share of a completion's tokens that count as unsure.")

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        """The teacher's two passes in the updates, and one of the policy before them."""
        return (*super().teacher_prompts(prompt_tokens, completion_tokens), prompt_tokens, prompt_tokens)


@register_method("selfdistill.training.methods.ad_opsd:AdOpsdMethod")
class AdOpsd(AnchoredSettings):
    """At unsure tokens a mixture of initial policy and teacher, by how much they would take away (18.7)."""

    title: ClassVar[str] = "AD-OPSD"

    name: Literal["ad_opsd"] = "ad_opsd"
    temperature: float = Field(0.1, gt=0, description="Scale of the mixture's weight inside the sigmoid.")


@register_method("selfdistill.training.methods.ad_opsd:EntropyAnchorMethod")
class EntropyAnchor(AnchoredSettings):
    """At unsure tokens the initial policy alone, elsewhere the teacher (docs/method.md 18.8)."""

    title: ClassVar[str] = "entropy anchor"

    name: Literal["entropy_anchor"] = "entropy_anchor"
