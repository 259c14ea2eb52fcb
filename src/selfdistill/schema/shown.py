"""config/config.yaml: the tables that are no experiment's own, and the reports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfdistill.schema.base import Model
from selfdistill.schema.entry import Entry
from selfdistill.schema.names import Distinct
from selfdistill.schema.shared import DiagnosticsFields, SolveRateFields
from selfdistill.schema.stages import ContextKind


class RichnessEntry(Entry, SolveRateFields):
    """The table of contexts (paper, section 3): which problems, which contexts."""

    dataset: str = Field(description="Name of the data set the problems are taken from.")
    distinct: int | None = Field(None, gt=0, description="Problems sampled from it; null takes all.")
    samples: int = Field(8, gt=0, description="Completions per problem and context.")
    contexts: Annotated[list[ContextKind], Distinct] = Field(
        ["none", "solution", "solution_no_think", "regenerated"], min_length=1, description="Contexts compared."
    )
    concise_instruction: str | None = Field(None, description="Text of the `concise` context.")
    seed: int = Field(0, ge=0, description="Seed of the samplers.")


class DiagnosticsEntry(DiagnosticsFields):
    """Where the loss lies in the stored completions of experiments: results/diagnostics/{model}.csv."""

    experiments: Annotated[list[str], Distinct] = Field(min_length=1, description="Experiments of this model.")
    benchmarks: Annotated[list[str], Distinct] = Field(min_length=1, description="Benchmarks with their completions.")
    context: Literal["solution", "solution_no_think"] = Field("solution", description="What the teacher has read.")
    samples: int = Field(8, gt=0, description="Completions of the base per problem, of which a right one is shown.")
    seed: int = Field(0, ge=0, description="Seed of their sampler.")


class CuresEntry(Model):
    """The leaderboard of cures on one model (docs/cures.md)."""

    experiments: Annotated[list[str], Distinct] = Field(
        min_length=1, description="Experiments on this model, in the order of the table."
    )
    controls: Annotated[list[str], Distinct] = Field(
        [], description="Those of them that are controls; table and figure mark them."
    )

    @model_validator(mode="after")
    def _knows_its_controls(self) -> CuresEntry:
        if unlisted := [name for name in self.controls if name not in self.experiments]:
            raise ValueError(f"controls: {', '.join(unlisted)} must be listed in experiments as well")
        return self


class ReportEntry(Model):
    """What a report shows; of `reports`, also which tables its name makes as a target."""

    experiments: Annotated[list[str], Distinct] = Field([], description="Experiments, in the order of the figures.")
    richness: Annotated[list[str], Distinct] = Field([], description="Models with a richness table.")
    sft: Annotated[list[str], Distinct] = Field([], description="Models with an SFT table.")
    coverage: Annotated[list[str], Distinct] = Field([], description="Models with a coverage table.")
    forced: Annotated[list[str], Distinct] = Field([], description="Models with a table of variants.")
    tuning: Annotated[list[str], Distinct] = Field([], description="Experiments with a `sweep`.")
    diagnostics: Annotated[list[str], Distinct] = Field([], description="Models with a table of diagnostics.")
    cures: Annotated[list[str], Distinct] = Field([], description="Models with a leaderboard of cures.")
    compare: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = Field(
        [], description="Pairs shown side by side: [A, B], each EXPERIMENT, EXPERIMENT:SEED or EXPERIMENT:SEED:STEP."
    )
