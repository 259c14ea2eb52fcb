"""Who teaches: a frozen copy of the initial policy, a moving average of the policy, or the policy itself.

    ema, after all updates of a step:  teacher <- (1 - rate) teacher + rate policy        (docs/method.md 4)

`fixed` is the paper's main setting. Only the moving average is state: the fixed teacher is the initial model, and
the live one is the policy.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from selfdistill.schema.methods import Teacher
from selfdistill.training.network import Network


class TeacherNetwork:
    """Holds the teacher's weights; built before any state is loaded into the policy."""

    def __init__(self, settings: Teacher, student: Network) -> None:
        self.settings = settings
        self.student = student
        self.network = student
        if settings.kind != "live":
            model = copy.deepcopy(student.model).requires_grad_(False).eval()
            self.network = Network(model, temperature=student.temperature, compute_dtype=student.compute_dtype)

    def update(self) -> None:
        """To be called once per training step, after its updates."""
        if self.settings.kind != "ema":
            return
        with torch.no_grad():
            own = list(self.network.model.parameters())
            theirs = list(self.student.model.parameters())
            torch._foreach_lerp_(own, theirs, self.settings.rate)

    def state_dict(self) -> dict[str, Tensor] | None:
        """Weights of a moving average, else None."""
        return self.network.model.state_dict() if self.settings.kind == "ema" else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.model.load_state_dict(state)
