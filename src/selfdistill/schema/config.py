"""config/config.yaml: what a user edits. Every key has one plain sentence here and an example there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from selfdistill.schema.base import Model
from selfdistill.schema.common import (
    Engine,
    GraderEntry,
    KvCacheType,
    MathGraderEntry,
    Precision,
    RepromptTemplate,
    Samples,
    Sampling,
    Seed,
    ThinkingMarks,
)
from selfdistill.schema.entry import Entry
from selfdistill.schema.names import Count, Distinct, Name
from selfdistill.schema.shared import (
    ChatFields,
    DatasetFields,
    EvaluationFields,
    GradingFields,
    GroupFields,
    InterventionFields,
    PretrainFields,
    TrainingFields,
)
from selfdistill.schema.shown import CuresEntry, DiagnosticsEntry, ReportEntry, RichnessEntry
from selfdistill.schema.source_entries import AssetFile, LiveCodeBenchFile, LoadedEntry
from selfdistill.schema.sources import ISO_DATE, NearDuplicates, ReasoningGymSource, ToySource

#: Each is a whole model on disk.
MOST_CHECKPOINTS = 10_000


class DatasetEntry(Entry, DatasetFields):
    """A set of problems, and what a model is asked and rewarded for on it where that is not the model's own setting."""

    source: AssetFile | LoadedEntry | LiveCodeBenchFile | ToySource | ReasoningGymSource = Field(
        discriminator="kind", description="Where the problems come from."
    )
    exclude: Annotated[list[str], Distinct] = Field(
        [], description="Data sets whose problems are dropped here (contamination)."
    )
    compare: Annotated[list[str], Distinct] = Field(
        [], description="Data sets in which near duplicates are looked for and listed."
    )
    near: NearDuplicates = Field(NearDuplicates(), description="Near duplicates; used with `compare`.")
    question: str | None = Field(None, description="Name of a question template; null takes the model's.")
    reward: GraderEntry | None = Field(
        None, discriminator="kind", description="Training reward; null takes the model's."
    )


class PretrainEntry(PretrainFields):
    """How a base model of the toy world is made."""

    exclude: Annotated[list[str], Distinct] = Field(
        [], description="Data sets whose problems never appear in the text."
    )


class ModelEntry(Entry, ChatFields):
    """A base model, with the settings that belong to it."""

    asset: str | None = Field(None, min_length=1, description="Name in config/assets.lock.yaml.")
    pretrain: PretrainEntry | None = Field(None, description="Pretrain a toy model here, in place of an asset.")
    thinking_marks: list[ThinkingMarks] | None = Field(
        None, min_length=1, description="What encloses the thinking; null finds it in the chat template."
    )
    chat_date: str | None = Field(
        None, pattern=ISO_DATE, description="The date that the chat template prints in place of today's, YYYY-MM-DD."
    )
    chat_template: str | None = Field(None, description="A chat template that replaces the model's own.")
    question: str = Field("boxed", description="Name of a question template.")
    reprompt: str = Field("training", description="Name of the re-prompt template of SDPO.")
    analysis_reprompt: str = Field("analysis", description="Name of the re-prompt template of the richness table.")
    max_positions: int = Field(gt=0, description="Longest sequence the model takes.")
    engine: Engine = "vllm"
    kv_cache_dtype: KvCacheType = "auto"
    training_sampling: Sampling = Field(description="Sampling in training; untruncated.")
    evaluation_sampling: Sampling = Field(description="Sampling on benchmarks.")
    analysis_sampling: Sampling = Field(description="Sampling for the richness table and SFT data.")
    reward: GraderEntry = Field(
        MathGraderEntry(scope_characters=100), discriminator="kind", description="Training reward."
    )
    precision: Precision = "bfloat16"

    @model_validator(mode="after")
    def _has_one_origin(self) -> ModelEntry:
        if (self.asset is None) == (self.pretrain is None):
            raise ValueError("needs either `asset` or `pretrain`, not both")
        return self

    @model_validator(mode="after")
    def _has_a_cache_of_its_engine(self) -> ModelEntry:
        if self.kv_cache_dtype != "auto" and self.engine != "vllm":
            raise ValueError(
                f"kv_cache_dtype {self.kv_cache_dtype} is for engine vllm; engine {self.engine} takes auto"
            )
        return self

    @model_validator(mode="after")
    def _has_room_for_completions(self) -> ModelEntry:
        for name in ("training_sampling", "evaluation_sampling", "analysis_sampling"):
            self.check_room(f"{name}.max_tokens", getattr(self, name).max_tokens)
        if self.pretrain is not None and self.max_positions > self.pretrain.architecture.max_positions:
            made = self.pretrain.architecture.max_positions
            raise ValueError(
                f"max_positions ({self.max_positions}) is above pretrain.architecture.max_positions ({made})"
            )
        return self

    def check_room(self, name: str, max_tokens: int) -> None:
        """ValueError if the longest prompt and a completion of `max_tokens`, set by `name`, exceed `max_positions`."""
        if self.max_prompt_tokens + max_tokens > self.max_positions:
            raise ValueError(
                f"{name} ({max_tokens}) and max_prompt_tokens ({self.max_prompt_tokens}) together exceed max_positions "
                f"({self.max_positions}): lower one of them"
            )


class BenchmarkEntry(Entry, GradingFields):
    """An evaluation set."""

    dataset: str = Field(description="Name of a data set.")
    domain: Literal["in", "ood"] = Field("ood", description="in: the distribution trained on; ood: another.")
    grader: GraderEntry = Field(MathGraderEntry(), discriminator="kind", description="How completions are graded.")
    samples: Samples = 16
    max_tokens: int | None = Field(None, gt=0, description="Longest completion here; null takes the model's.")
    chance: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="Accuracy of a random guess by family of problems (`all`: every family), drawn in figures."
    )

    def sampling(self, of_model: Sampling) -> Sampling:
        """A model's sampling with this benchmark's limit."""
        if self.max_tokens is None:
            return of_model
        return Sampling(**(of_model.model_dump() | {"max_tokens": self.max_tokens}))


class VariantEntry(InterventionFields):
    """Another way to evaluate: with a forced beginning, without some words, or with fewer tokens."""

    max_tokens: int | None = Field(
        None, gt=0, description="Longest completion, its beginning included; null takes the benchmark's."
    )

    @model_validator(mode="after")
    def _changes_something(self) -> VariantEntry:
        if not (self.prefix or self.banned_words or self.max_tokens):
            raise ValueError("needs at least one of prefix, banned_words and max_tokens")
        return self

    def sampling(self, plain: Sampling) -> Sampling:
        """The sampling of a benchmark with this token budget, if it is the smaller one."""
        budget = min(self.max_tokens or plain.max_tokens, plain.max_tokens)
        return plain.model_copy(update={"max_tokens": budget})


class TrainingEvaluationEntry(EvaluationFields):
    """Part of a benchmark, evaluated while training."""

    benchmark: str = Field(description="Name of a benchmark; its grader, seed and max_tokens hold.")


class TrainEntry(Entry, TrainingFields, GroupFields):
    """A training recipe. `method` holds `name` and what differs from the method's defaults."""

    method: dict[str, Any] = Field(description="Objective: `name` and its options (docs/method.md).")
    evaluation: TrainingEvaluationEntry | None = Field(None, description="Evaluation while training; null is off.")

    @model_validator(mode="after")
    def _has_checkpoints_that_can_be_counted(self) -> TrainEntry:
        if self.steps // self.checkpoint_every > MOST_CHECKPOINTS:
            raise ValueError(
                f"steps ({self.steps}) and checkpoint_every ({self.checkpoint_every}) make more than "
                f"{MOST_CHECKPOINTS:,} checkpoints: raise checkpoint_every"
            )
        return self


class CoverageSweep(Model):
    """Task coverage: the experiment once more on n distinct problems, as `{experiment}_d{n}`."""

    distinct: Annotated[list[Count], Distinct] = Field(min_length=1, description="Numbers of distinct problems.")
    seeds: Annotated[list[Seed], Distinct] = Field([0], min_length=1, description="Training seeds of the sweep.")
    seed: int = Field(0, ge=0, description="Seed of the order from which the nested subsets are taken.")
    datasets: dict[Count, str] = Field({}, description="A data set for a size, in place of a subset.")


class SftSource(Model):
    """Where the completions of an SFT run come from: sampled from the base model, with and without a solution."""

    distinct: int | None = Field(None, gt=0, description="Problems sampled from; null takes all.")
    samples: int = Field(8, gt=0, description="Completions per problem and kind.")
    context: Literal["solution", "solution_no_think"] = Field("solution", description="Context of the guided ones.")
    limit: int = Field(800, gt=0, description="Most problems kept; one completion of each kind per problem.")
    min_solve_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Lowest solve rate without a solution of kept problems (the paper: 0.125).",
    )
    max_solve_rate: float | None = Field(
        None, ge=0, le=1, description="Highest such solve rate (the paper: 0.5); null keeps all that were solved."
    )
    system: str | None = Field(None, description="System message of the training prompts, in place of the model's.")
    seed: int = Field(0, ge=0, description="Seed of the samplers.")


class ExperimentEntry(Entry):
    """One model, one recipe, one data set, some seeds."""

    model: str = Field(description="Name of a model.")
    recipe: str = Field(description="Name of a training recipe.")
    dataset: str = Field(description="Name of the data set trained on.")
    overrides: dict[str, Any] = Field({}, description="Changes to the recipe, key by key.")
    seeds: Annotated[list[Seed], Distinct] = Field([0], min_length=1, description="Training seeds: one run each.")
    benchmarks: Annotated[list[str], Distinct] = Field(min_length=1, description="Names of benchmarks.")
    evaluate: Literal["last", "all"] | Annotated[list[Count], Distinct, Field(min_length=1)] = Field(
        "last", description="Which checkpoints: the last, all, or a list of steps. The base is always evaluated."
    )
    variants: Annotated[list[str], Distinct] = Field(
        [], description="Names of variants: the last checkpoints are evaluated in these ways as well."
    )
    coverage: CoverageSweep | None = Field(
        None, description="The experiment again on fewer distinct problems, as NAME_d8, ..."
    )
    sweep: dict[str, Annotated[list[Any], Distinct, Field(min_length=1)]] = Field(
        {},
        description="Values to try of settings of the recipe, such as optimiser.learning_rate: the experiment again "
        "with each (of several settings: each combination), as NAME_learning_rate_1e_06, ...",
    )
    sft: SftSource | None = Field(None, description="How completions for SFT are sampled; method sft needs it.")


class Config(Model):
    """The whole of config/config.yaml."""

    questions: dict[Name, str] = Field(description="Question templates; each holds {question}.")
    reprompts: dict[Name, RepromptTemplate] = Field(description="Re-prompt templates.")
    lexicon: list[str] = Field(min_length=1, description="Epistemic words, counted in every completion.")
    bases: dict[Name, dict[str, Any]] = Field(
        {}, description="What entries of any section can be `like`; it makes nothing by itself."
    )
    datasets: dict[Name, DatasetEntry] = Field(description="Data sets by name.")
    models: dict[Name, ModelEntry] = Field(description="Models by name.")
    benchmarks: dict[Name, BenchmarkEntry] = Field(description="Benchmarks by name.")
    variants: dict[Name, VariantEntry] = Field({}, description="Other ways to evaluate, by name.")
    recipes: dict[Name, TrainEntry] = Field(description="Training recipes by name.")
    experiments: dict[Name, ExperimentEntry] = Field(description="Experiments by name.")
    richness: dict[Name, RichnessEntry] = Field({}, description="Richness tables by model name.")
    cures: dict[Name, CuresEntry] = Field({}, description="Leaderboards of cures by model name.")
    diagnostics: dict[Name, DiagnosticsEntry] = Field({}, description="Tables of diagnostics by model name.")
    report: ReportEntry = Field(ReportEntry(), description="What results/report.html shows.")
    reports: dict[Name, ReportEntry] = Field(
        {},
        description="Other reports: results/reports/NAME.html. `snakemake NAME` makes it and all of its tables.",
    )
    runtime_file: str = Field(
        "config/runtime.yaml", description="File with the settings of the machine; never part of a key."
    )

    @field_validator("lexicon")
    @classmethod
    def _is_a_set_of_words(cls, lexicon: list[str]) -> list[str]:
        lowered = [word.lower() for word in lexicon]
        if not all(word.strip() for word in lexicon):
            raise ValueError("holds an empty word")
        if repeated := sorted({word for word in lowered if lowered.count(word) > 1}):
            raise ValueError(f"a word is listed twice (ignoring case): {', '.join(repeated)}")
        return lexicon
