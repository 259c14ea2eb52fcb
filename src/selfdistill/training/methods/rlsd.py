"""RLSD (arXiv 2604.03128): the reward decides the sign of an advantage, the teacher its size (docs/method.md 18.1).

A [ (1 - lambda) + lambda clip( exp(sign(A) u), 1 - 0.2, 1 + 0.2 ) ],    u = log T(y) - log S(y)
"""

from __future__ import annotations

import numpy as np

from selfdistill.schema.methods import Rlsd
from selfdistill.training.data import RowStatistics
from selfdistill.training.methods.credit import CreditMethod, decayed, log_ratio


class RlsdMethod(CreditMethod):
    """A right rollout is rewarded most where the teacher agrees, a wrong one punished most where it does not."""

    settings: Rlsd

    def credit(self, row: RowStatistics, step: int) -> np.ndarray:
        advantage, clip = row.plan.advantage, self.settings.weight_clip
        share = decayed(self.settings.strength, self.settings.decay_steps, step)
        bounded = np.clip(np.sign(advantage) * log_ratio(row), np.log1p(-clip), np.log1p(clip))
        return advantage * (1 - share + share * np.exp(bounded))
