"""AntiSD as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.credit import CreditSettings


@register_method("selfdistill.training.methods.antisd:AntisdMethod")
class Antisd(CreditSettings):
    """Rewards, and a push away from the teacher that stops when its entropy has collapsed (docs/method.md 18.3)."""

    title: ClassVar[str] = "AntiSD"

    name: Literal["antisd"] = "antisd"
    divide_by_std: bool = Field(True, description="Divide advantages by the group's standard deviation.")
    strength: float = Field(
        0.5, ge=0, description="Weight of the push; without division by the deviation 0.1 is about the same."
    )
    start_step: int = Field(5, gt=1, description="First step with the push; the steps before it are the warm-up.")
    entropy_floor: float = Field(
        0.93, gt=0, description="The push rests while the teacher's entropy is below this share of the warm-up's."
    )
