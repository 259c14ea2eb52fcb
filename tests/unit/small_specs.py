"""Specs for tests: the fields that a test says nothing about have plain values."""

from __future__ import annotations

from typing import Any, TypeVar

from selfdistill.schema.base import Spec
from selfdistill.schema.common import MathGrader

PLAIN = {
    "chat_template": None,
    "correction_clip": 2.0,
    "deduplicate": True,
    "draw": "with_replacement",
    "engine": "torch",
    "examples": [],
    "grader": MathGrader(),
    "group_size": 8,
    "instruction": None,
    "limit": None,
    "max_reprompt_tokens": None,
    "max_steps_without_signal": 50,
    "on_policy": None,
    "precision": "float32",
    "repeats": 1,
    "reprompt": None,
    "samples": 1,
    "seed": 0,
    "step": None,
    "system": None,
    "thinking": None,
}

AnySpec = TypeVar("AnySpec", bound=Spec)


def small(spec: type[AnySpec], **given: Any) -> AnySpec:
    """A spec of a class with the given fields."""
    return spec(**{name: value for name, value in PLAIN.items() if name in spec.model_fields} | given)
