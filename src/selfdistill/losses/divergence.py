"""Divergence between student and teacher next-token distributions (docs/method.md 2).

    alpha = 0        KL(T || S)                       "forward"
    alpha = 1        KL(S || T)                       "reverse"; Eq. 1 of the paper
    0 < alpha < 1    (1 - alpha) KL(S || M) + alpha KL(T || M),  M = (1 - alpha) S + alpha T

The paper's maths runs use alpha = 0.5 (its Eq. 1 says alpha = 1). The end points are special cases: the mixture form
tends to 0 there. Gradients flow through S everywhere, inside M too; the teacher gets none.

Support: the student's K most likely tokens, gathered from both; both normalised over the whole vocabulary first. Then
either one more category with the remaining mass (the paper's choice), or a renormalisation over the K tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfdistill.losses.compiled import Compilable
from selfdistill.losses.normalise import chosen_logprobs

#: log-mass of the K tokens is kept below this, so that the tail has a finite logarithm.
_MAX_TOP_LOG_MASS = -1e-7


@Compilable
def divergence(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, alpha: float, top_k: int | None, add_tail: bool
) -> Tensor:
    """Per-token divergence [N] in nats.

    `top_k` None, or at least V, takes the whole vocabulary (`add_tail` then has nothing to add). Logits are expected
    to be divided by the sampling temperature already.
    """
    teacher_logits_NV = teacher_logits_NV.detach()
    if top_k is None or top_k >= student_logits_NV.shape[-1]:
        return _divergence(student_logits_NV.log_softmax(-1), teacher_logits_NV.log_softmax(-1), alpha)
    index_NK = student_logits_NV.detach().topk(top_k, dim=-1).indices
    if not add_tail:
        student_top_NK, teacher_top_NK = student_logits_NV.gather(-1, index_NK), teacher_logits_NV.gather(-1, index_NK)
        return _divergence(student_top_NK.log_softmax(-1), teacher_top_NK.log_softmax(-1), alpha)
    student_NK = chosen_logprobs(student_logits_NV, index_NK)
    teacher_NK = chosen_logprobs(teacher_logits_NV, index_NK)
    return _divergence(_with_tail(student_NK), _with_tail(teacher_NK), alpha)


def sampled_token_loss(logprobs_N: Tensor, teacher_logprobs_N: Tensor) -> Tensor:
    """Reverse KL by its score function at the sampled token [N]: sg[log S(y) - log T(y)] log S(y).

    Over y ~ S its gradient is that of KL(S || T) in expectation; its value is not the divergence. The paper's code has
    it and no run of the paper uses it (docs/method.md 2).
    """
    return (logprobs_N - teacher_logprobs_N).detach() * logprobs_N


def _with_tail(logprobs_NK: Tensor) -> Tensor:
    """K log-probs and the log of what they leave: K + 1 categories that sum to one."""
    mass_N1 = logprobs_NK.logsumexp(-1, keepdim=True).clamp(max=_MAX_TOP_LOG_MASS)
    return torch.cat([logprobs_NK, torch.log(-torch.expm1(mass_N1))], dim=-1)


def _divergence(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    if alpha == 0:
        return _kl(teacher, student)
    if alpha == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))
    return (1 - alpha) * _kl(student, mixture) + alpha * _kl(teacher, mixture)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(-1)
