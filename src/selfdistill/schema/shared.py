"""Fields that a config entry and a stage spec have in common, each declared once.

A class here has the config's defaults. A spec that inherits from it has none of them (`Spec` in schema/base.py):
planning states every value, so no default can enter a key unseen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from selfdistill.schema.base import Model, Since
from selfdistill.schema.common import Example, Grader, Lora, Optimiser, Samples
from selfdistill.schema.sources import Expectation, Part
from selfdistill.schema.toy import ChainMixture, ToyArchitecture, ToyMixture


class DatasetFields(Model):
    """What is kept of a source's problems."""

    deduplicate: bool = Field(True, description="Drop problems whose normalised text appeared before.")
    limit: int | None = Field(None, gt=0, description="Keep the first N problems.")
    split: Annotated[Part | None, Since(None)] = Field(None, description="Keep one side of a split in two.")
    expect: Annotated[Expectation | None, Since(None)] = Field(None, description="Counts that the source must have.")


class PretrainFields(Model):
    """How a base model of the toy world is made."""

    architecture: ToyArchitecture = Field(ToyArchitecture(), description="Size of the network.")
    mixture: ToyMixture = Field(ToyMixture(), description="Kinds of pretraining text and their shares.")
    seed: int = Field(0, ge=0, description="Seed of weights and data.")
    steps: int = Field(gt=0, description="Optimiser steps.")
    batch_size: int = Field(64, gt=0, description="Sequences per step.")
    optimiser: Optimiser = Field(description="Optimiser.")
    max_final_loss: float = Field(gt=0, description="A running loss above this is an error.")
    chains: Annotated[ChainMixture | None, Since(None)] = Field(
        None, description="Text of chain problems, in place of `mixture` (docs/toy.md 9)."
    )


class ChatFields(Model):
    """How a problem becomes a prompt."""

    system: str | None = Field(None, description="System message.")
    examples: list[Example] = Field([], description="Worked examples, as earlier turns of the chat.")
    thinking: bool | None = Field(None, description="enable_thinking of the chat template; null passes nothing.")
    max_prompt_tokens: int = Field(2048, gt=0, description="Longer prompts are dropped and counted.")


class GradingFields(Model):
    """How completions are graded, and the seed that they are sampled with."""

    grader: Grader = Field(discriminator="kind", description="How completions are graded.")
    seed: int = Field(0, ge=0, description="Seed of the sampler.")


class InterventionFields(Model):
    """What completions begin with and must not say: is a habit suppressed, or forgotten (docs/method.md 13.1)?"""

    prefix: Annotated[str | None, Since(None)] = Field(
        None, min_length=1, description="Text that every completion begins with, as if the model had written it."
    )
    banned_words: Annotated[list[str], Since([])] = Field(
        [], description="Words that the model cannot say: every token that is one of them, in any case."
    )

    @field_validator("banned_words")
    @classmethod
    def _are_words(cls, words: list[str]) -> list[str]:
        if not all(word.strip() for word in words):
            raise ValueError("holds an empty word")
        return words


class SolveRateFields(Model):
    """Which problems are kept for the table of contexts (docs/method.md 11.2)."""

    min_solve_rate: float = Field(0.125, ge=0, le=1, description="Lowest solve rate of a problem that is kept.")
    max_solve_rate: float = Field(0.5, ge=0, le=1, description="Highest solve rate of a problem that is kept.")
    limit: int = Field(100, gt=0, description="The first N such problems are kept.")

    @model_validator(mode="after")
    def _has_a_window(self) -> SolveRateFields:
        if self.min_solve_rate > self.max_solve_rate:
            raise ValueError(f"min_solve_rate ({self.min_solve_rate}) is above max_solve_rate ({self.max_solve_rate})")
        return self


class EvaluationFields(Model):
    """When to evaluate while training, and on how much."""

    every_steps: int = Field(gt=0, description="Training steps between two evaluations; the last step has one, too.")
    samples: Samples = 1
    limit: int | None = Field(None, gt=0, description="The first N problems; null takes all.")


class DiagnosticsFields(Model):
    """What is measured in stored completions (docs/method.md 13.2)."""

    limit: int | None = Field(None, gt=0, description="The first N problems of the benchmark; null takes all.")
    alpha: float = Field(0.5, ge=0, le=1, description="Divergence that is taken for the loss (docs/method.md 2).")
    fork_entropy: float = Field(0.5, ge=0, description="Nats from which the next token is undecided.")
    gradients: bool = Field(True, description="Gradient norms of each class of tokens; a backward pass for each.")
    branches: int = Field(0, ge=0, description="Completions per checkpoint whose other branch is sampled.")
    branch_samples: int = Field(4, gt=0, description="Completions sampled from each such branch.")


class GroupFields(Model):
    """The completions that a method samples for a prompt."""

    group_size: int = Field(8, gt=1, description="Completions per prompt.")
    correction_clip: float | None = Field(
        2.0, gt=0, description="Cap on the weight of trainer over sampler; null is off (docs/method.md 7.2)."
    )
    overlong_buffer: Annotated[int | None, Since(None)] = Field(
        None, gt=0, description="Tokens before the limit over which the reward falls by up to 1 (DAPO); null is off."
    )
    mask_truncated: Annotated[bool, Since(False)] = Field(
        False, description="Completions that were cut off have no loss; they still count in their group's mean reward."
    )
    refill_rounds: Annotated[int, Since(0)] = Field(
        0, ge=0, description="Most rounds in which groups without a signal are sampled anew from other problems (DAPO)."
    )


class TrainingFields(Model):
    """What every training run has, whatever its method."""

    steps: int = Field(gt=0, description="Training steps: one batch, then all its updates.")
    prompts_per_step: int = Field(gt=0, description="Prompts (SFT: completions) per step.")
    prompts_per_update: int = Field(gt=0, description="Prompts (SFT: completions) per optimiser step.")
    draw: Literal["with_replacement", "epochs"] = Field(
        "with_replacement", description="How problems are drawn; epochs: everything once before anything comes twice."
    )
    optimiser: Optimiser = Field(description="Optimiser.")
    checkpoint_every: int = Field(gt=0, description="Steps between checkpoints; the last step always has one.")
    max_steps_without_signal: int = Field(
        50, gt=0, description="Training stops after so many steps in a row with nothing to learn."
    )
    lora: Annotated[Lora | None, Since(None)] = Field(
        None, description="Train low-rank adapters; null trains all weights."
    )
    mini_batches: Annotated[Literal["groups", "mixed"], Since("groups")] = Field(
        "groups", description="An update takes whole groups; or rollouts of any group of the step, as the paper's code."
    )
    bad_update: Annotated[Literal["error", "skip"], Since("error")] = Field(
        "error",
        description="A gradient that is not finite ends the run; or its update is left out (paper's code).",
    )
