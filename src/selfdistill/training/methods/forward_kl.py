"""Forward KL with a cap on every entry (docs/method.md 18.9): a counter-example, not a cure.

    sum over the vocabulary v of  min( T(v) log( T(v) / S(v) ), c )

Where the cap binds the entry has no gradient. What is left no longer pulls S(v) up, and through the normalisation of S
it pushes it down: the clip reverses the correction where it is largest.
"""

from __future__ import annotations

from torch import Tensor

from selfdistill.losses import importance_weights
from selfdistill.schema.methods import ForwardKl
from selfdistill.training.data import CONTEXT
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.demonstrations import DemonstrationMethod


class ForwardKlMethod(DemonstrationMethod):
    """Without a cap it is SDPO's forward KL over the whole vocabulary."""

    settings: ForwardKl

    def token_loss(self, tokens: Tokens) -> Tensor:
        losses = tokens.distil([CONTEXT], self._clipped)
        return losses * importance_weights(tokens.logprobs, tokens.old_logprobs, self.settings.importance_clip)

    def _clipped(self, tokens: Tokens, teacher_logits: Tensor) -> Tensor:
        teacher = teacher_logits.detach().log_softmax(-1)
        entries = teacher.exp() * (teacher - tokens.student_logits.log_softmax(-1))
        return entries.clamp(max=self.settings.entry_clip).sum(-1) if self.settings.entry_clip else entries.sum(-1)
