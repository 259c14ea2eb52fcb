"""AD-OPSD (arXiv 2607.10805) and its plain form: keep to the initial policy where the student is unsure.

At the share of a completion's tokens with the highest entropy of the student the target is (docs/method.md 18.7, 18.8)

    U P0 + (1 - U) T,     U = sigmoid( S (log S - log T) / tau )     for every token of the vocabulary, normalised again

or P0 alone in the plain form. Elsewhere the target is T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from selfdistill.rollouts import Group
from selfdistill.schema.methods import AdOpsd, AnchoredSettings
from selfdistill.training.data import CONTEXT, PLAIN, RowStatistics, TeacherPrompt
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.distillation import DistillationMethod, all_or_none


class EntropyAnchorMethod(DistillationMethod):
    """`tokens.advantages` is 1 at the chosen tokens and 0 elsewhere."""

    settings: AnchoredSettings
    names = (CONTEXT, PLAIN)
    weighs = True
    weighed = ()

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        return all_or_none(super().contexts(groups) | self.own_prompts(groups))

    def weigh(self, rows: Sequence[RowStatistics], step: int) -> list[np.ndarray]:
        return [self._unsure(row.student.entropy) for row in rows]

    def _unsure(self, entropy_L: np.ndarray) -> np.ndarray:
        """1 for the tokens with the highest entropy, at least one; the first of equals."""
        count = math.ceil(self.settings.entropy_share * len(entropy_L))
        chosen = np.zeros_like(entropy_L)
        chosen[np.argsort(-entropy_L, kind="stable")[:count]] = 1
        return chosen

    @torch.no_grad()
    def target(self, tokens: Tokens, *teacher_logits: Tensor) -> Tensor:
        shown, plain = (logits.log_softmax(-1) for logits in teacher_logits)
        return torch.where(tokens.advantages[:, None] > 0, self.anchor(tokens, shown, plain), shown)

    def anchor(self, tokens: Tokens, shown: Tensor, plain: Tensor) -> Tensor:
        """The target at the chosen tokens: log-probs up to a constant [n, V]."""
        return plain


class AdOpsdMethod(EntropyAnchorMethod):
    """A token of the vocabulary that the teacher would take from the student keeps the initial policy's share."""

    settings: AdOpsd

    def anchor(self, tokens: Tokens, shown: Tensor, plain: Tensor) -> Tensor:
        student = tokens.student_logits.log_softmax(-1)
        scaled = student.exp() * (student - shown) / self.settings.temperature
        kept, taken = torch.nn.functional.logsigmoid(scaled), torch.nn.functional.logsigmoid(-scaled)
        return torch.logaddexp(kept + plain, taken + shown)
