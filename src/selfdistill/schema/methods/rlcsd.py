"""RLCSD as settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from selfdistill.schema.base import Since
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
    two_means: Annotated[bool, Since(False)] = Field(
        False,
        description="Average the loss over the changed tokens and over the others, and add the two means, as its "
        "authors do; with `aggregation: token_mean`.",
    )

    @model_validator(mode="after")
    def _has_a_mean_over_tokens(self) -> Self:
        if self.two_means and self.aggregation != "token_mean":
            raise ValueError(f"`two_means` needs `aggregation: token_mean`, not `{self.aggregation}`")
        return self

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        shown, own = super().teacher_prompts(prompt_tokens, completion_tokens)
        return (*[shown] * (1 + self.wrong), own)
