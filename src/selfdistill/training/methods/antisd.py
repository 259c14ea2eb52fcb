"""AntiSD (arXiv 2605.11609): rewards, and a bounded push away from the teacher (docs/method.md 18.3).

    A - lambda phi,     phi = ( softplus(u) - log 2 ) / 2,     u = log T(y) - log S(y)

The push begins after a warm-up, and rests while the teacher's mean entropy is below a share of the warm-up's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfdistill.schema.methods import Antisd
from selfdistill.training.data import CONTEXT, RowPlan, RowStatistics
from selfdistill.training.methods.credit import CreditMethod, log_ratio


class AntisdMethod(CreditMethod):
    """`state`: number of warm-up steps with a teacher, and the sum of its mean entropies over them."""

    settings: Antisd
    _entropy: float = 0.0
    _is_open: bool = False

    def settle(self, plan: RowPlan) -> RowPlan:
        return replace(plan, has_gradient=plan.has_gradient or CONTEXT in plan.teachers)

    def weigh(self, rows: Sequence[RowStatistics], step: int) -> list[np.ndarray]:
        shown = [row.teachers[CONTEXT].entropy for row in rows if CONTEXT in row.teachers]
        self._entropy = 0.0  # A step that shows no context has no entropy, not that of the step before.
        self._is_open = bool(shown) and self._gate(float(np.concatenate(shown).mean()), step)
        return super().weigh(rows, step)

    def _gate(self, entropy: float, step: int) -> bool:
        """Whether the push acts in this step; in the warm-up its entropy is added to the state."""
        self._entropy = entropy
        count, total = self.state.get("steps", 0), self.state.get("entropy", 0.0)
        if step < self.settings.start_step:
            self.state = {"steps": count + 1, "entropy": total + entropy}
            return False
        return count == 0 or entropy >= self.settings.entropy_floor * total / count

    def credit(self, row: RowStatistics, step: int) -> np.ndarray:
        strength = self.settings.strength if self._is_open else 0.0
        return row.plan.advantage - strength * (np.logaddexp(0, log_ratio(row)) - np.log(2)) / 2

    def metrics(self) -> dict[str, float]:
        return {"gate_open": float(self._is_open), "teacher_entropy": self._entropy}
