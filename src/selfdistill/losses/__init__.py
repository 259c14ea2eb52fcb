"""Objectives as pure functions: tensors in, tensors out (docs/method.md 2, 5, 7).

Shape suffixes: N tokens, V vocabulary, K the student's most likely tokens, R rows of a mini-batch, G group.
"""

from selfdistill.losses.aggregation import token_coefficients
from selfdistill.losses.compiled import Compilable, compile_losses
from selfdistill.losses.divergence import divergence, sampled_token_loss
from selfdistill.losses.normalise import entropy
from selfdistill.losses.policy import (
    group_advantages,
    grpo_token_loss,
    importance_weights,
    kl_penalty,
    token_logprobs,
)

__all__ = [
    "Compilable",
    "compile_losses",
    "divergence",
    "entropy",
    "group_advantages",
    "grpo_token_loss",
    "importance_weights",
    "kl_penalty",
    "sampled_token_loss",
    "token_coefficients",
    "token_logprobs",
]
