"""The sum of GRPO and SDPO as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.demonstrations import DistillationSettings
from selfdistill.schema.methods.grpo import PolicySettings


@register_method("selfdistill.training.methods.grpo_sdpo:GrpoSdpoMethod")
class GrpoSdpo(DistillationSettings, PolicySettings):
    """The losses of GRPO and SDPO added up, the second with a weight that may fade (docs/method.md 18.5)."""

    title: ClassVar[str] = "GRPO + SDPO"

    name: Literal["grpo_sdpo"] = "grpo_sdpo"
    weight: float = Field(1.0, ge=0, description="Weight of the loss of SDPO in the first step.")
    decay_steps: int | None = Field(None, gt=0, description="Steps until that weight is 0; null: it stays.")

    @property
    def label(self) -> str:
        return f"{super().label}, w {self.weight:g}{' fading' if self.decay_steps else ''}"
