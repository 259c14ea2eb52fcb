"""Methods that distil a target distribution into the student at every token (docs/method.md 2).

The target is the teacher's distribution, or one made from what the teacher says under several contexts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from selfdistill.losses import divergence, importance_weights
from selfdistill.rollouts import Group
from selfdistill.schema.methods import DistillationSettings
from selfdistill.training.data import CONTEXT, PLAIN, TeacherPrompt
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.demonstrations import DemonstrationMethod


class DistillationMethod(DemonstrationMethod):
    """Base of such methods; they may add a target. `names` are the contexts that it is made from."""

    settings: DistillationSettings
    names: Sequence[str] = (CONTEXT,)

    def target(self, tokens: Tokens, *teacher_logits: Tensor) -> Tensor:
        """Logits [n, V] of the target, given the teacher's under each of `names`."""
        return teacher_logits[0]

    def token_loss(self, tokens: Tokens) -> Tensor:
        losses = tokens.distil(self.names, self.divergence)
        return losses * importance_weights(tokens.logprobs, tokens.old_logprobs, self.settings.importance_clip)

    def divergence(self, tokens: Tokens, *teacher_logits: Tensor) -> Tensor:
        """Divergence [n] between the student and the target."""
        return divergence(
            tokens.student_logits,
            self.target(tokens, *teacher_logits),
            alpha=self.settings.alpha,
            top_k=self.settings.top_k,
            add_tail=self.settings.add_tail,
        )

    def own_prompts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        """The student's prompts, but with `teacher_thinking` where it is set: T without its context."""
        return {PLAIN: list(self.prompts.of("none", groups))}


def all_or_none(contexts: Mapping[str, Sequence[TeacherPrompt | None]]) -> dict[str, list[TeacherPrompt | None]]:
    """The contexts of those rollouts that have them all."""
    rows = [row if all(row) else [None] * len(row) for row in zip(*contexts.values(), strict=True)]
    return dict(zip(contexts, map(list, zip(*rows, strict=True)), strict=True))
