"""One small object per method: what the teacher sees, who is trained and how much, and the loss of a token."""

from __future__ import annotations

from typing import Any

from selfdistill.schema.methods import Grpo, Sdpo
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.methods.base import Tokens, TrainingMethod
from selfdistill.training.methods.grpo import GrpoMethod
from selfdistill.training.methods.sdpo import SdpoMethod
from selfdistill.training.methods.sft import SftMethod

__all__ = ["Tokens", "TrainingMethod", "make_method"]


def make_method(spec: TrainSpec, tokenizer: Any, max_positions: int | None) -> TrainingMethod:
    """The method of a spec; `max_positions` is the model's longest sequence."""
    if isinstance(spec.method, Grpo):
        return GrpoMethod(spec.method)
    if isinstance(spec.method, Sdpo):
        return SdpoMethod(spec.method, tokenizer, spec.thinking, spec.on_policy.sampling.max_tokens, max_positions)
    return SftMethod(spec.method)
