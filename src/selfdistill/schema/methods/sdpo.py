"""SDPO as settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from selfdistill.schema.base import Since
from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.demonstrations import DistillationSettings

#: Which tokens have a loss: a diagnostic (docs/method.md 2.6).
LossTokens = Literal["all", "epistemic", "not_epistemic", "first", "not_first"]


@register_method("selfdistill.training.methods.sdpo:SdpoMethod")
class Sdpo(DistillationSettings):
    """Self-distillation from the model's own correct solution (docs/method.md 2 to 4)."""

    name: Literal["sdpo"] = "sdpo"

    formula: ClassVar[str] = (
        "loss = mean over tokens of D_alpha(pi(. | x, y<t), teacher(. | x, c, y<t)), where c shows the teacher a "
        "correct solution of the same prompt (docs/method.md 2)"
    )

    sampled_token: Annotated[bool, Since(False)] = Field(
        False,
        description="Only the sampled token, in score-function form: needs alpha 1; top_k and add_tail are unused.",
    )
    loss_tokens: Annotated[LossTokens, Since("all")] = Field(
        "all",
        description="Tokens with a loss: only or all but the epistemic ones, only or all but the first ones.",
    )
    first_tokens: Annotated[int, Since(2)] = Field(
        2, gt=0, description="How many tokens of a completion are its first ones."
    )

    @model_validator(mode="after")
    def _has_a_sampled_form(self) -> Sdpo:
        if self.sampled_token and self.alpha != 1:
            raise ValueError(f"sampled_token estimates KL(student||teacher) only: set alpha to 1 (it is {self.alpha})")
        return self

    @property
    def label(self) -> str:
        if self.loss_tokens == "all":
            return super().label
        words = self.loss_tokens.replace("not_", "all but ").replace("first", f"first {self.first_tokens}")
        return f"{super().label}, loss on {words}"
