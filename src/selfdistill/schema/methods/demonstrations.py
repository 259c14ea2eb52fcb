"""What every method shares whose teacher is shown a context, such as a demonstration."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from selfdistill.schema.base import Since
from selfdistill.schema.common import RepromptTemplate
from selfdistill.schema.methods.base import MethodSettings, ModelDefaults, Teacher

#: The paper's longest teacher prompt in tokens.
_LONGEST_REPROMPT = 22528
#: What a teacher may be shown in training; training/methods/teacher_prompts.py has their meaning.
TeacherContext = Literal[
    "none",
    "solution",
    "solution_no_think",
    "regenerated",
    "answer",
    "feedback",
    "donor",
    "concise",
    "wrong",
    "reference_only",
    "reference",
]
_SYMBOLS = {"solution": "s", "solution_no_think": "s\\think", "regenerated": "ỹ"}


class DemonstrationSettings(MethodSettings):
    """A teacher that reads a correct completion of the same group before the answer (docs/method.md 3 and 4)."""

    context: TeacherContext = Field(
        "solution",
        description="What the teacher is shown: a demonstration with or without its thinking, one written anew, a "
        "control, or the data set's own solution.",
    )
    instruction: Annotated[str | None, Since(None)] = Field(
        None, min_length=1, description="The instruction of context `concise`, which needs one."
    )
    teacher_thinking: Annotated[bool | None, Since(None)] = Field(
        None, description="enable_thinking of the chat template in the teacher's prompt; null: as in the student's."
    )
    keep_space: Annotated[bool, Since(False)] = Field(
        False, description="Keep white space around a demonstration without its thinking, as the paper's code does."
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
    #: The method in figures; by default its name in capitals.
    title: ClassVar[str] = ""

    @model_validator(mode="after")
    def _has_its_instruction(self) -> Self:
        if (self.context == "concise") != (self.instruction is not None):
            raise ValueError("`instruction` is needed by context `concise`, e.g. `Be brief.`, and by no other")
        return self

    @property
    def variant(self) -> str:
        return self.context

    @property
    def label(self) -> str:
        name = self.title or self.name.rpartition(".")[2].replace("_", " ").upper()
        return f"{name} (c = {_SYMBOLS.get(self.context, self.context)})"

    @property
    def second_network(self) -> Teacher:
        return self.teacher

    def regenerated(self, group_size: int) -> int:
        # The author of the demonstration is shown another one.
        demonstrations = 2 if self.exclude_own_success else 1
        return min(demonstrations, group_size) if self.context == "regenerated" else 0

    def longest_sampled(self, prompt_tokens: int) -> int:
        return max(prompt_tokens, self.max_reprompt_tokens) if self.context == "regenerated" else prompt_tokens

    def teacher_prompts(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, ...]:
        return (min(self.max_reprompt_tokens, prompt_tokens + completion_tokens),)

    @classmethod
    def defaults(cls, model: ModelDefaults) -> dict[str, Any]:
        return {
            "reprompt": model.reprompt,
            "max_reprompt_tokens": min(_LONGEST_REPROMPT, model.max_prompt_tokens),
        }


class DistillationSettings(DemonstrationSettings):
    """A divergence between the student and what the teacher says (docs/method.md 2)."""

    alpha: float = Field(0.5, ge=0, le=1, description="0: KL(teacher||student); 1: KL(student||teacher); else JSD.")
    top_k: int | None = Field(100, gt=0, description="The student's most likely tokens kept; null keeps all.")
    add_tail: bool = Field(True, description="One more category for the rest; false renormalises over the top k.")
    importance_clip: float | None = Field(2.0, gt=0, description="Cap on the old-policy weight; null is off.")


class FixedTeacherSettings(DistillationSettings):
    """Distillation whose target is made from what the initial policy says without any context (P0)."""

    @model_validator(mode="after")
    def _has_a_fixed_teacher(self) -> Self:
        # P0, like T, comes from the network that teaches; one that moves is not the initial policy.
        if self.teacher.kind != "fixed":
            raise ValueError(
                f"`teacher.kind` of {self.name} must be `fixed`, not `{self.teacher.kind}`: its target keeps to the "
                "initial policy. For a moving teacher choose another method, such as sdpo"
            )
        return self
