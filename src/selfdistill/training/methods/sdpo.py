"""SDPO: distil the policy that has seen a correct solution into the policy that has not (docs/method.md 2 to 4)."""

from __future__ import annotations

from torch import Tensor

from selfdistill.losses import divergence, importance_weights, sampled_token_loss, token_logprobs
from selfdistill.schema.methods import Sdpo
from selfdistill.training.data import CONTEXT
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.demonstrations import DemonstrationMethod


class SdpoMethod(DemonstrationMethod):
    """Every token's divergence between student and teacher."""

    settings: Sdpo

    def token_loss(self, tokens: Tokens) -> Tensor:
        losses = tokens.distil([CONTEXT], self._divergence)
        return losses * importance_weights(tokens.logprobs, tokens.old_logprobs, self.settings.importance_clip)

    def _divergence(self, tokens: Tokens, teacher_logits: Tensor) -> Tensor:
        if self.settings.sampled_token:
            return sampled_token_loss(tokens.logprobs, token_logprobs(teacher_logits, tokens.targets))
        return divergence(
            tokens.student_logits,
            teacher_logits,
            alpha=self.settings.alpha,
            top_k=self.settings.top_k,
            add_tail=self.settings.add_tail,
        )
