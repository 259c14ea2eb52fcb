"""GRPO as settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from selfdistill.schema.base import Since
from selfdistill.schema.methods.base import MethodSettings, Teacher, register_method


class PolicySettings(MethodSettings):
    """Advantages and the clipped loss of a method that learns from rewards (docs/method.md 5)."""

    divide_by_std: bool = Field(False, description="Divide advantages by the group's standard deviation.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="Lower clip of the ratio.")
    clip_high: float = Field(0.28, gt=0, description="Upper clip of the ratio.")
    dual_clip: float | None = Field(3.0, gt=1, description="Bound on the loss of negative advantages; null is off.")


@register_method("selfdistill.training.methods.grpo:GrpoMethod")
class Grpo(PolicySettings):
    """GRPO as the paper's baseline runs it (docs/method.md 5): mean baseline, clip-higher, dual clip, no KL."""

    name: Literal["grpo"] = "grpo"

    formula: ClassVar[str] = (
        "A = r - mean(r) over the group of a prompt; "
        "loss = -mean min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = pi/pi_old (docs/method.md 5)"
    )

    kl_coefficient: Annotated[float, Since(0.0)] = Field(
        0.0, ge=0, description="Weight of the KL penalty towards the initial policy; the paper has none."
    )

    @property
    def second_network(self) -> Teacher | None:
        return Teacher(kind="fixed") if self.kl_coefficient else None
