"""Purified OPSD (arXiv 2607.02234): what the demonstration says about this question alone (docs/method.md 18.6).

    target proportional to  P0 exp( c tanh( d / c ) / beta ),     d = log T - log R, minus its mean under P0

P0 reads the question, T question and demonstration, R the same demonstration alone: three passes of one network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfdistill.rollouts import Group
from selfdistill.schema.methods import PurifiedOpsd
from selfdistill.training.data import CONTEXT, PLAIN, TeacherPrompt
from selfdistill.training.methods.base import Policy, Tokens
from selfdistill.training.methods.distillation import DistillationMethod, all_or_none
from selfdistill.training.methods.teacher_prompts import TeacherPrompts

_REFERENCE_ONLY = "reference_only"


class PurifiedOpsdMethod(DistillationMethod):
    """A token that the demonstration alone makes likely, whatever the question, gains nothing."""

    settings: PurifiedOpsd
    names = (CONTEXT, PLAIN, _REFERENCE_ONLY)

    def __init__(self, settings: PurifiedOpsd, policy: Policy) -> None:
        super().__init__(settings, policy)
        self.prompts_alone = TeacherPrompts(settings, policy, shows_question=False)

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        without_question = {_REFERENCE_ONLY: self.shown(self.prompts_alone, groups)}
        return all_or_none(super().contexts(groups) | self.own_prompts(groups) | without_question)

    @torch.no_grad()
    def target(self, tokens: Tokens, *teacher_logits: Tensor) -> Tensor:
        shown, plain, alone = (logits.log_softmax(-1) for logits in teacher_logits)
        evidence = shown - alone
        evidence = evidence - (plain.exp() * evidence).sum(-1, keepdim=True)
        cap = self.settings.evidence_cap
        return plain + cap * torch.tanh(evidence / cap) / self.settings.temperature
