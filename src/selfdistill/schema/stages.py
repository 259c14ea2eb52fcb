"""The spec of every stage: what is hashed into the key of its artifact, and nothing else.

`VERSION` is raised when a change of code changes results; the reason goes in the comment beside it.
`slug` is readable, never hashed, and a function of the spec and the slugs of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from selfdistill.schema.base import Since, Spec
from selfdistill.schema.common import (
    AssetPin,
    Engine,
    KvCacheType,
    Precision,
    RepromptTemplate,
    Samples,
    Sampling,
    ThinkingMarks,
)
from selfdistill.schema.methods import Method
from selfdistill.schema.shared import (
    ChatFields,
    DatasetFields,
    DiagnosticsFields,
    GradingFields,
    InterventionFields,
    PretrainFields,
    SolveRateFields,
    TrainingFields,
)
from selfdistill.schema.sources import ISO_DATE, NearDuplicates, Source, source_slug
from selfdistill.schema.training import OnPolicy, TrainingEvaluation

ContextKind = Literal["none", "solution", "solution_no_think", "regenerated", "answer", "feedback", "donor", "concise"]


class StageSpec(Spec):
    """Base of all stage specs."""

    stage: ClassVar[str]
    VERSION: ClassVar[int]

    def slug(self, inputs: Mapping[str, str]) -> str:
        """Readable name; `inputs` maps roles to the slugs of the upstream artifacts."""
        raise NotImplementedError

    @property
    def due_payload(self) -> list[str]:
        """Paths in the payload without which an artifact is not finished."""
        return []

    @property
    def due_metrics(self) -> range:
        """Steps that have one line each in metrics.jsonl, in this order."""
        return range(0)


class DatasetSpec(DatasetFields, StageSpec):
    stage: ClassVar[str] = "dataset"
    VERSION: ClassVar[int] = 1

    source: Source = Field(discriminator="kind", description="Where the problems come from.")
    near: Annotated[NearDuplicates | None, Since(None)] = Field(
        None, description="Look for near duplicates of the problems of the inputs `compare.*`."
    )

    def slug(self, inputs: Mapping[str, str]) -> str:
        part = f"-{self.split.part}" if self.split else ""
        return f"{source_slug(self.source)}{part}"


class SampleSpec(StageSpec):
    """Task coverage (docs/method.md 11.4): n distinct problems, nested over n for one seed, each repeated."""

    stage: ClassVar[str] = "sample"
    VERSION: ClassVar[int] = 1

    distinct: int = Field(gt=0, description="Number of distinct problems.")
    repeats: int = Field(gt=0, description="How often each appears.")
    seed: int = Field(ge=0, description="Seed of the order from which the nested subsets are taken.")

    def slug(self, inputs: Mapping[str, str]) -> str:
        return f"{inputs['problems']}-{self.distinct}x{self.repeats}"


class PromptsSpec(ChatFields, StageSpec):
    stage: ClassVar[str] = "prompts"
    VERSION: ClassVar[int] = 1

    question_template: str = Field(description="Holds {question}.")

    def slug(self, inputs: Mapping[str, str]) -> str:
        return inputs["problems"]


class ModelSpec(StageSpec):
    """A pretrained model as an ordinary folder."""

    stage: ClassVar[str] = "model"
    VERSION: ClassVar[int] = 1

    pin: AssetPin = Field(description="Which weights, tokenizer and chat template.")
    chat_template: str | None = Field(description="A template that replaces the model's own.")
    chat_date: Annotated[str | None, Since(None)] = Field(
        None, pattern=ISO_DATE, description="The date that the template prints in place of today's."
    )

    def slug(self, inputs: Mapping[str, str]) -> str:
        return (self.pin.repo or self.pin.file or "model").rsplit("/", 1)[-1]


class PretrainSpec(PretrainFields, StageSpec):
    """Base model of the toy world (docs/toy.md)."""

    stage: ClassVar[str] = "pretrain"
    VERSION: ClassVar[int] = 1

    def slug(self, inputs: Mapping[str, str]) -> str:
        return "toy"


class RolloutsSpec(GradingFields, StageSpec):
    stage: ClassVar[str] = "rollouts"
    VERSION: ClassVar[int] = 1

    step: int | None = Field(ge=0, description="Checkpoint of a training run; null for a base model.")
    samples: Samples
    sampling: Sampling = Field(description="How completions are drawn.")
    engine: Engine
    kv_cache_dtype: KvCacheType = "auto"
    reprompt: RepromptTemplate | None = Field(description="How a context is shown; needs a contexts input.")
    max_reprompt_tokens: int | None = Field(gt=0, description="Longest prompt with a context.")
    thinking: bool | None = Field(description="enable_thinking of a prompt with a context: the prompts' flag.")

    def slug(self, inputs: Mapping[str, str]) -> str:
        return inputs["contexts"] if "contexts" in inputs else f"{inputs['model']}-{inputs['prompts']}"


class SelectSpec(SolveRateFields, StageSpec):
    """Problems that the base model sometimes solves (docs/method.md 11.2)."""

    stage: ClassVar[str] = "select"
    VERSION: ClassVar[int] = 1

    def slug(self, inputs: Mapping[str, str]) -> str:
        return f"selected-{inputs['problems']}"


class ContextsSpec(StageSpec):
    """Teacher contexts (docs/method.md 8.1)."""

    stage: ClassVar[str] = "contexts"
    VERSION: ClassVar[int] = 1

    kind: ContextKind = Field(description="What the teacher is shown.")
    instruction: str | None = Field(description="Text of the concise instruction; used by `concise`.")
    seed: int = Field(ge=0, description="Seed of the donor assignment; used by `donor`.")
    thinking_marks: Annotated[list[ThinkingMarks] | None, Since(None)] = Field(
        None, min_length=1, description="What encloses the thinking; null finds it in the chat template."
    )

    def slug(self, inputs: Mapping[str, str]) -> str:
        return f"{self.kind}-{inputs['rollouts']}"


class SftDataSpec(StageSpec):
    """Guided and unguided correct completions of the same problems (docs/method.md 6)."""

    stage: ClassVar[str] = "sft_data"
    VERSION: ClassVar[int] = 1

    limit: int | None = Field(gt=0, description="Most problems kept; one completion of each kind per problem.")
    min_solve_rate: Annotated[float | None, Since(None)] = Field(
        None, ge=0, le=1, description="Lowest solve rate without a solution of a problem that is kept."
    )
    max_solve_rate: Annotated[float | None, Since(None)] = Field(None, ge=0, le=1, description="Highest such rate.")

    def slug(self, inputs: Mapping[str, str]) -> str:
        return inputs["unguided"]


class TrainSpec(TrainingFields, StageSpec):
    stage: ClassVar[str] = "train"
    # 2: the gradient of the head is added up in another order; rounding differs, and with it every later draw.
    VERSION: ClassVar[int] = 2

    method: Method = Field(description="Objective.")
    method_code: Annotated[str | None, Since(None)] = Field(
        None, description="Digest of the code of a method from outside the package; null for a shipped one."
    )
    seed: int = Field(ge=0, description="Seed of data order and sampling.")
    on_policy: OnPolicy | None = Field(description="Sampling, reward and correction; null for SFT.")
    precision: Precision
    thinking: bool | None = Field(description="enable_thinking of the teacher's prompt: the student's flag.")
    thinking_marks: Annotated[list[ThinkingMarks] | None, Since(None)] = Field(
        None, min_length=1, description="What encloses the thinking; null finds it in the chat template."
    )
    evaluation: Annotated[TrainingEvaluation | None, Since(None)] = Field(
        None, description="Evaluation while training; needs the input evaluation_prompts."
    )

    @model_validator(mode="after")
    def _fits(self) -> TrainSpec:
        if self.method.samples != (self.on_policy is not None):
            needed = "needed" if self.method.samples else "not used"
            raise ValueError(f"on_policy is {needed} by method {self.method.name}")
        if self.prompts_per_step % self.prompts_per_update:
            raise ValueError("prompts_per_step must be a multiple of prompts_per_update")
        return self

    @property
    def checkpoint_steps(self) -> list[int]:
        return sorted({*range(self.checkpoint_every, self.steps + 1, self.checkpoint_every), self.steps})

    @property
    def due_payload(self) -> list[str]:
        rollouts = [self.rollouts_file(step) for step in self.due_metrics] if self.on_policy else []
        return [*(f"checkpoints/step-{step}" for step in self.checkpoint_steps), *rollouts]

    @staticmethod
    def rollouts_file(step: int) -> str:
        """Where the payload has the completions of a step, if the method samples."""
        return f"rollouts/step-{step:06d}.parquet"

    @property
    def due_metrics(self) -> range:
        return range(1, self.steps + 1)

    def slug(self, inputs: Mapping[str, str]) -> str:
        detail = f"-{self.method.variant}" if self.method.variant else ""
        data = f"{inputs['model']}-{inputs['prompts']}" if "prompts" in inputs else inputs["examples"]
        return f"{data}-{self.method.name}{detail}-seed{self.seed}"


class EvaluateSpec(GradingFields, InterventionFields, StageSpec):
    """Checkpoints of one run on one benchmark (docs/method.md 13)."""

    stage: ClassVar[str] = "evaluate"
    VERSION: ClassVar[int] = 1

    steps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="Checkpoints; [0] is a base model.")
    samples: Samples
    sampling: Sampling = Field(description="How completions are drawn.")
    engine: Engine
    kv_cache_dtype: KvCacheType = "auto"

    def slug(self, inputs: Mapping[str, str]) -> str:
        return f"{inputs['model']}-on-{inputs['prompts']}"


class EpistemicsSpec(StageSpec):
    """Counts of epistemic words (docs/method.md 10)."""

    stage: ClassVar[str] = "epistemics"
    VERSION: ClassVar[int] = 1

    words: list[str] = Field(min_length=1, description="The lexicon, lower case.")

    def slug(self, inputs: Mapping[str, str]) -> str:
        return inputs["rollouts"]


class DiagnosticsSpec(DiagnosticsFields, StageSpec):
    """Where the loss lies in stored completions (docs/method.md 13.2)."""

    stage: ClassVar[str] = "diagnostics"
    # 2: each branch has its own rest of the token budget; before, the longest beginning decided for all of them.
    VERSION: ClassVar[int] = 2

    steps: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="Checkpoints of the evaluation.")
    words: list[str] = Field(min_length=1, description="The lexicon, lower case.")
    reprompt: RepromptTemplate = Field(description="How a solution is shown.")
    max_reprompt_tokens: int = Field(gt=0, description="Longest prompt with a solution.")
    thinking: bool | None = Field(description="enable_thinking of a prompt with a solution: the prompts' flag.")

    def slug(self, inputs: Mapping[str, str]) -> str:
        return f"{inputs['rollouts']}-by-{inputs['contexts'].split('-')[0]}"


STAGES: dict[str, type[StageSpec]] = {
    spec.stage: spec
    for spec in (
        DatasetSpec,
        SampleSpec,
        PromptsSpec,
        ModelSpec,
        PretrainSpec,
        RolloutsSpec,
        SelectSpec,
        ContextsSpec,
        SftDataSpec,
        TrainSpec,
        EvaluateSpec,
        EpistemicsSpec,
        DiagnosticsSpec,
    )
}
