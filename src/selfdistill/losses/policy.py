"""Policy-gradient pieces: advantages, clipped loss, importance weights (docs/method.md 2.3, 5, 7.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from selfdistill.losses.compiled import Compilable
from selfdistill.losses.normalise import chosen_logprobs

#: Log-ratios are clamped to this range before exponentiation, as in the paper's code.
_MAX_LOG_RATIO = 20.0
#: Added to the standard deviation, as in the paper's code.
_STD_EPSILON = 1e-6


@Compilable
def token_logprobs(logits_NV: Tensor, token_ids_N: Tensor) -> Tensor:
    """Log-probability [N] of each token under softmax(logits)."""
    return chosen_logprobs(logits_NV, token_ids_N.unsqueeze(-1)).squeeze(-1)


def group_advantages(rewards_G: Tensor, *, divide_by_std: bool) -> Tensor:
    """Reward minus the mean of its group [G]; equal rewards give exactly zero.

    The paper's baseline does not divide by the standard deviation (docs/method.md 5).
    """
    if bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    advantages_G = rewards_G - rewards_G.mean()
    return advantages_G / (rewards_G.std() + _STD_EPSILON) if divide_by_std else advantages_G


def grpo_token_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """PPO's clipped loss per token [N], with a bound of `dual_clip` x |A| where A < 0 (docs/method.md 5)."""
    ratio_N = (logprobs_N - old_logprobs_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    loss_N = torch.maximum(-advantages_N * ratio_N, -advantages_N * ratio_N.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is None:
        return loss_N
    return torch.where(advantages_N < 0, torch.minimum(loss_N, -dual_clip * advantages_N), loss_N)


def kl_penalty(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) at the sampled token [N]: exp(d) - d - 1 with d = reference - policy.

    Never negative, unbiased in value for tokens of the policy. The paper uses no KL (docs/method.md 5).
    """
    difference_N = (reference_logprobs_N.detach() - logprobs_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return difference_N.exp() - difference_N - 1


def importance_weights(numerator_N: Tensor, denominator_N: Tensor, cap: float | None) -> Tensor:
    """exp(numerator - denominator) capped from above [N], without gradient; `cap` None gives ones.

    Old-policy weight of SDPO: current over old log-probs (docs/method.md 2.3). Sampler correction of every on-policy
    method: the trainer's old log-probs over the sampler's (docs/method.md 7.2).
    """
    if cap is None:
        return torch.ones_like(numerator_N)
    log_ratio_N = (numerator_N - denominator_N).detach().clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return log_ratio_N.exp().clamp(max=cap)
