"""One small class per method: what the teacher sees, which rows are trained and how much, and the loss of a token."""

from __future__ import annotations

from typing import Any

from selfdistill.schema.errors import UserError
from selfdistill.schema.outside import load_module
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.methods.base import Policy, Tokens, TrainingMethod

__all__ = ["Policy", "Tokens", "TrainingMethod", "make_method"]


def make_method(spec: TrainSpec, tokenizer: Any, max_positions: int | None) -> TrainingMethod:
    """The method of a spec; `max_positions` is the model's longest sequence.

    Raises UserError for a training class that cannot be loaded.
    """
    settings = spec.method
    module, _, name = settings.training.partition(":")
    made = getattr(load_module(module, f"method `{settings.name}`"), name, None)
    if not (isinstance(made, type) and issubclass(made, TrainingMethod)):
        raise UserError(f"method `{settings.name}`: {module} has no training class `{name}` (a TrainingMethod).")
    limit = spec.on_policy.sampling.max_tokens if spec.on_policy else None
    return made(settings, Policy(tokenizer, spec.thinking, limit, max_positions, spec.thinking_marks))
