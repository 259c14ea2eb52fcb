"""RLSD as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.credit import CreditSettings


@register_method("selfdistill.training.methods.rlsd:RlsdMethod")
class Rlsd(CreditSettings):
    """Rewards decide the sign, a teacher's log-probs the size of each token's advantage (docs/method.md 18.1)."""

    title: ClassVar[str] = "RLSD"

    name: Literal["rlsd"] = "rlsd"
    strength: float = Field(0.5, ge=0, le=1, description="Share of the teacher's weight in the first step.")
    decay_steps: int | None = Field(50, gt=0, description="Steps until that share is 0; null: it stays.")
    weight_clip: float = Field(0.2, gt=0, lt=1, description="The weight is clipped to 1 - this and 1 + this.")
