"""Purified OPSD as settings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from selfdistill.schema.base import Since
from selfdistill.schema.methods.base import register_method
from selfdistill.schema.methods.demonstrations import FixedTeacherSettings


@register_method("selfdistill.training.methods.purified_opsd:PurifiedOpsdMethod")
class PurifiedOpsd(FixedTeacherSettings):
    """The initial policy, moved by what the demonstration says about this question alone (docs/method.md 18.6)."""

    title: ClassVar[str] = "Purified OPSD"

    name: Literal["purified_opsd"] = "purified_opsd"
    evidence_cap: float = Field(10.0, gt=0, description="Bound on what a token's log-prob can gain or lose, in nats.")
    temperature: float = Field(1.0, gt=0, description="The bounded evidence is divided by this.")

    alone: Annotated[Literal["solution", "context"], Since("solution")] = Field(
        "solution",
        exclude=True,
        description="What is shown without the question: part of the key. It follows from `context`; leave it out.",
    )

    @model_validator(mode="before")
    @classmethod
    def _shows_the_context_alone(cls, data: Any) -> Any:
        """Earlier versions showed a sibling's solution alone, whatever `context` was: their results have other keys."""
        if not isinstance(data, dict):
            return data
        shows_solution = data.get("context", "solution") == "solution" and not data.get("feedback")
        alone = "solution" if shows_solution else "context"
        if data.get("alone", alone) != alone:
            raise ValueError(f"`alone` follows from `context` and `feedback`: leave it out (it is {alone} here)")
        return data | {"alone": alone}

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        shown = super().teacher_prompts(prompt_tokens, completion_tokens)
        return (*shown, prompt_tokens, *shown)
