"""SDPO: distil the policy that has seen a correct solution into the policy that has not (docs/method.md 2 to 4)."""

from __future__ import annotations

from torch import Tensor

from selfdistill.losses import sampled_token_loss, token_logprobs
from selfdistill.schema.methods import Sdpo
from selfdistill.training.methods.base import Tokens
from selfdistill.training.methods.distillation import DistillationMethod
from selfdistill.training.metrics import epistemic_tokens


class SdpoMethod(DistillationMethod):
    """Every token's divergence between student and teacher; with `loss_tokens` only that of some tokens."""

    settings: Sdpo
    _is_epistemic_V: Tensor | None = None

    def token_loss(self, tokens: Tokens) -> Tensor:
        losses = super().token_loss(tokens)
        return losses if self.settings.loss_tokens == "all" else losses * self._mask(tokens)

    def divergence(self, tokens: Tokens, *teacher_logits: Tensor) -> Tensor:
        if self.settings.sampled_token:
            return sampled_token_loss(tokens.logprobs, token_logprobs(teacher_logits[0], tokens.targets))
        return super().divergence(tokens, *teacher_logits)

    def _mask(self, tokens: Tokens) -> Tensor:
        """1 for tokens that have a loss, 0 for the others, which still count in every denominator [n]."""
        if self.settings.loss_tokens.endswith("first"):
            chosen = tokens.positions < self.settings.first_tokens
        else:
            if self._is_epistemic_V is None:
                marked = epistemic_tokens(self.policy.tokenizer, tokens.student_logits.shape[-1])
                self._is_epistemic_V = marked.to(tokens.targets.device)
            chosen = self._is_epistemic_V[tokens.targets]
        return (~chosen if self.settings.loss_tokens.startswith("not_") else chosen).float()
