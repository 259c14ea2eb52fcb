"""Forward KL, whole or clipped as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.demonstrations import DemonstrationSettings


@register_method("selfdistill.training.methods.forward_kl:ForwardKlMethod")
class ForwardKl(DemonstrationSettings):
    """KL(teacher||student) over the whole vocabulary, clipped by entry: a counter-example (docs/method.md 18.9)."""

    title: ClassVar[str] = "forward KL"

    name: Literal["forward_kl"] = "forward_kl"
    entry_clip: float | None = Field(
        0.05, gt=0, description="Cap on what one token of the vocabulary adds at one position; null: no clip."
    )
    importance_clip: float | None = Field(2.0, gt=0, description="Cap on the old-policy weight; null is off.")

    @property
    def label(self) -> str:
        return super().label.replace(self.title, f"{self.title}, {'clipped' if self.entry_clip else 'not clipped'}")
