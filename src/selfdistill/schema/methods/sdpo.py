"""SDPO as settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfdistill.schema.base import Since
from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.demonstrations import DemonstrationSettings


@register_method("selfdistill.training.methods.sdpo:SdpoMethod")
class Sdpo(DemonstrationSettings):
    """Self-distillation from the model's own correct solution (docs/method.md 2 to 4)."""

    name: Literal["sdpo"] = "sdpo"
    alpha: float = Field(0.5, ge=0, le=1, description="0: KL(teacher||student); 1: KL(student||teacher); else JSD.")
    top_k: int | None = Field(100, gt=0, description="The student's most likely tokens kept; null keeps all.")
    add_tail: bool = Field(True, description="One more category for the rest; false renormalises over the top k.")
    sampled_token: Annotated[bool, Since(False)] = Field(
        False,
        description="Only the sampled token, in score-function form: needs alpha 1; top_k and add_tail are unused.",
    )
    importance_clip: float | None = Field(2.0, gt=0, description="Cap on the old-policy weight; null is off.")

    @model_validator(mode="after")
    def _has_a_sampled_form(self) -> Sdpo:
        if self.sampled_token and self.alpha != 1:
            raise ValueError(f"sampled_token estimates KL(student||teacher) only: set alpha to 1 (it is {self.alpha})")
        return self
