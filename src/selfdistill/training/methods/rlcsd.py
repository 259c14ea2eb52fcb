"""RLCSD (arXiv 2606.11709): contrast a right demonstration with wrong ones (docs/method.md 18.2).

e = log T+(y) - log mean over k of T-_k(y)        r = lambda tanh(e / tau)
A + r where |r| > delta, but never beyond 0 (A = 0 stays 0); A elsewhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfdistill.rollouts import Group, Rollout
from selfdistill.schema.methods import Rlcsd
from selfdistill.training.data import CONTEXT, RowPlan, RowStatistics, TeacherPrompt
from selfdistill.training.methods.credit import CreditMethod


class RlcsdMethod(CreditMethod):
    """A rollout without a right or without a wrong sibling keeps its advantage at every token."""

    settings: Rlcsd
    _changed: float = 0.0

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        """With `two_means` rollouts without an advantage are in no mean."""
        plans = super().plan(group)
        return [replace(p, is_supervised=p.has_gradient) for p in plans] if self.settings.two_means else plans

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        wrong = [row for group in groups for row in self.prompts.wrong_siblings(group, self.settings.wrong)]
        names = [f"wrong_{number}" for number in range(self.settings.wrong)]
        return super().contexts(groups) | dict(zip(names, map(list, zip(*wrong, strict=True)), strict=True))

    def weigh(self, rows: Sequence[RowStatistics], step: int) -> list[np.ndarray]:
        found = super().weigh(rows, step)
        tokens = sum(map(len, found))
        changed = sum(int((a != row.plan.advantage).sum()) for a, row in zip(found, rows, strict=True))
        self._changed = changed / max(tokens, 1)
        return self._as_two_means(found, rows) if self.settings.two_means else found

    def credit(self, row: RowStatistics, step: int) -> np.ndarray:
        advantages = np.full_like(row.student.logprobs, row.plan.advantage)
        changed = advantages + self._change(row)
        return np.where(advantages > 0, np.maximum(changed, 0), np.where(advantages < 0, np.minimum(changed, 0), 0))

    def _change(self, row: RowStatistics) -> np.ndarray:
        """r of each token; 0 where it is small, and in a row without a right or a wrong sibling."""
        wrong = [teacher.logprobs for name, teacher in row.teachers.items() if name != CONTEXT]
        if CONTEXT not in row.teachers or not wrong:
            return np.zeros_like(row.student.logprobs)
        contrast = row.teachers[CONTEXT].logprobs - (np.logaddexp.reduce(wrong) - np.log(len(wrong)))
        change = self.settings.strength * np.tanh(contrast / self.settings.temperature)
        return np.where(np.abs(change) > self.settings.threshold, change, 0)

    def _as_two_means(self, advantages: Sequence[np.ndarray], rows: Sequence[RowStatistics]) -> list[np.ndarray]:
        """Scaled so that a mean over all tokens is the mean over changed tokens plus the mean over the others."""
        is_changed = [self._change(row) != 0 for row in rows]
        tokens, changed = sum(map(len, is_changed)), sum(int(flags.sum()) for flags in is_changed)
        of_changed, of_others = tokens / max(changed, 1), tokens / max(tokens - changed, 1)
        return [a * np.where(flags, of_changed, of_others) for a, flags in zip(advantages, is_changed, strict=True)]

    def metrics(self) -> dict[str, float]:
        return {"changed_token_share": self._changed}
