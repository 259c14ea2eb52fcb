"""Parts of the training recipe that more than one method has: what a step samples, and what is evaluated meanwhile."""

from __future__ import annotations

from pydantic import Field, model_validator

from selfdistill.schema.base import Model
from selfdistill.schema.common import Engine, Grader, MathGrader, Sampling


class OnPolicy(Model):
    """What a step samples; null for SFT."""

    group_size: int = Field(8, gt=1, description="Completions per prompt.")
    sampling: Sampling = Field(description="Must be untruncated: renormalised log-probs bias the ratio.")
    grader: Grader = Field(MathGrader(scope_characters=100), discriminator="kind", description="Reward.")
    engine: Engine = Field("torch", description="Sampler.")
    correction_clip: float | None = Field(
        2.0, gt=0, description="Cap on the weight of trainer over sampler log-probs; null is off (docs/method.md 7.2)."
    )

    @model_validator(mode="after")
    def _is_untruncated(self) -> OnPolicy:
        if not self.sampling.is_untruncated or self.sampling.temperature == 0:
            raise ValueError("sampling for training must have temperature > 0, top_p 1 and top_k 0")
        return self


class TrainingEvaluation(Model):
    """Part of a benchmark, evaluated while training; the numbers go to the step's metrics."""

    every_steps: int = Field(gt=0, description="Training steps between two evaluations; the last step has one, too.")
    samples: int = Field(1, gt=0, description="Completions per problem.")
    sampling: Sampling = Field(description="How completions are drawn.")
    grader: Grader = Field(MathGrader(), discriminator="kind", description="How completions are graded.")
    engine: Engine = Field("torch", description="Sampler; on-policy methods use the one they train with.")
    limit: int | None = Field(None, gt=0, description="The first N problems; null takes all.")
    seed: int = Field(0, ge=0, description="Seed of the sampler.")
