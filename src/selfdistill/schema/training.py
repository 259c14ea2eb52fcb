"""Parts of the training recipe that more than one method has: what a step samples, and what is evaluated meanwhile."""

from __future__ import annotations

from pydantic import Field, model_validator

from selfdistill.schema.base import Spec
from selfdistill.schema.common import Engine, Grader, KvCacheType, Sampling
from selfdistill.schema.shared import EvaluationFields, GradingFields, GroupFields


class OnPolicy(GroupFields, Spec):
    """What a step samples; null for SFT."""

    sampling: Sampling = Field(description="Must be untruncated: renormalised log-probs bias the ratio.")
    grader: Grader = Field(discriminator="kind", description="Reward.")
    engine: Engine
    kv_cache_dtype: KvCacheType = "auto"

    @model_validator(mode="after")
    def _fits_its_buffer(self) -> OnPolicy:
        if self.overlong_buffer is not None and self.overlong_buffer > self.sampling.max_tokens:
            raise ValueError(
                f"overlong_buffer ({self.overlong_buffer}) is above sampling.max_tokens ({self.sampling.max_tokens})"
            )
        return self

    @model_validator(mode="after")
    def _is_untruncated(self) -> OnPolicy:
        if not self.sampling.is_untruncated or self.sampling.temperature == 0:
            raise ValueError("sampling for training must have temperature > 0, top_p 1 and top_k 0")
        return self


class TrainingEvaluation(EvaluationFields, GradingFields, Spec):
    """Part of a benchmark, evaluated while training; the numbers go to the step's metrics."""

    sampling: Sampling = Field(description="How completions are drawn.")
    engine: Engine = Field(description="Engine that samples; a method that samples uses its own.")
    kv_cache_dtype: KvCacheType = "auto"
