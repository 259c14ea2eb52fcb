"""SDPO as settings, and what it shares with every method whose teacher is shown a demonstration."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from selfdistill.schema.base import Since
from selfdistill.schema.common import RepromptTemplate
from selfdistill.schema.methods.base import MethodSettings, ModelDefaults, Teacher, register_method

#: The paper's longest teacher prompt in tokens.
_LONGEST_REPROMPT = 22528
_SYMBOLS = {"solution": "s", "solution_no_think": "s\\think"}


class DemonstrationSettings(MethodSettings):
    """A teacher that reads a correct completion of the same group before the answer (docs/method.md 3 and 4)."""

    context: Literal["solution", "solution_no_think"] = Field(
        "solution", description="The demonstration with its thinking, or without it."
    )
    success_threshold: float = Field(0.5, description="Reward from which a completion may serve as demonstration.")
    exclude_own_success: bool = Field(True, description="A completion is never its own demonstration.")
    feedback: Annotated[bool, Since(False)] = Field(
        False, description="Where there is no demonstration, show what was wrong, if the grader tells (kind code)."
    )
    teacher: Teacher = Field(Teacher(), description="Who teaches.")
    reprompt: RepromptTemplate = Field(description="How the demonstration is shown to the teacher.")
    max_reprompt_tokens: int = Field(
        _LONGEST_REPROMPT, gt=0, description="Longest teacher prompt; demonstrations are cut to fit."
    )
    max_truncated_share: float = Field(0.5, ge=0, le=1, description="More cut demonstrations than this is an error.")

    shows_context: ClassVar[bool] = True

    @property
    def variant(self) -> str:
        return self.context

    @property
    def label(self) -> str:
        return f"{self.name.rpartition('.')[2].replace('_', ' ').upper()} (c = {_SYMBOLS[self.context]})"

    @property
    def second_network(self) -> Teacher:
        return self.teacher

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        return (min(self.max_reprompt_tokens, prompt_tokens + completion_tokens),)

    @classmethod
    def defaults(cls, model: ModelDefaults) -> dict[str, Any]:
        return {
            "reprompt": model.reprompt,
            "max_reprompt_tokens": min(_LONGEST_REPROMPT, model.max_prompt_tokens),
        }


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
