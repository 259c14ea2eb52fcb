"""Supervised fine-tuning as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selfdistill.schema.methods.base import Aggregation, Arm, MethodSettings, register_method


@register_method("selfdistill.training.methods.sft:SftMethod")
class Sft(MethodSettings):
    """Cross-entropy on given completions (docs/method.md 6)."""

    name: Literal["sft"] = "sft"

    formula: ClassVar[str] = "loss = -mean log pi(y_t | x, y<t) over given completions (docs/method.md 6)"

    arm: Arm = Field(description="Completions sampled with or without a solution.")
    aggregation: Aggregation = Field("token_mean", description="How token losses become one number.")

    @property
    def variant(self) -> str:
        return self.arm

    @property
    def label(self) -> str:
        return f"SFT {self.arm}"

    @property
    def trains_on(self) -> Arm:
        return self.arm
