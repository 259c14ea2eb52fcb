"""Log-probs of a few chosen tokens under a whole vocabulary, and its entropy, with as little memory as that takes.

    log p[k] = z[k] - logsumexp(z)          d/dz = sum_k g[k] (one_hot(k) - softmax(z))

Written out as plain tensor operations this needs five buffers of the size of the logits; here the forward pass needs
a few rows at a time and the backward pass one buffer, which is the gradient itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfdistill.losses.compiled import Compilable

#: Elements whose exponentials are held at a time: 4 MiB, or 256 MiB on a GPU, where a block is a few kernel launches.
_BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


def chosen_logprobs(logits_NV: Tensor, index_NK: Tensor) -> Tensor:
    """Log-probs [N, K] of the tokens `index_NK` under softmax(logits); a token may appear several times."""
    return _ChosenLogprobs.apply(logits_NV, index_NK)


@Compilable
def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy [N] of softmax(logits) in nats; without gradient."""
    parts = []
    with torch.no_grad():
        for part in _blocks(logits_NV):
            logprobs = part.log_softmax(-1)
            parts.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.cat(parts)


def _blocks(logits_NV: Tensor) -> tuple[Tensor, ...]:
    """A few rows at a time; all at once where compiled, since a fused reduction stores no exponentials."""
    if torch.compiler.is_compiling():
        return (logits_NV,)
    return logits_NV.split(max(1, _BLOCK_ELEMENTS[logits_NV.device.type] // logits_NV.shape[-1]))


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, index_NK: Tensor) -> Tensor:
        normaliser_N1 = torch.cat([part.logsumexp(-1, keepdim=True) for part in _blocks(logits_NV)])
        ctx.save_for_backward(logits_NV, normaliser_N1, index_NK)
        return logits_NV.gather(-1, index_NK) - normaliser_N1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_NK: Tensor) -> tuple[Tensor, None]:
        logits_NV, normaliser_N1, index_NK = ctx.saved_tensors
        gradient_NV = (logits_NV - normaliser_N1).exp_().mul_(-gradient_NK.sum(-1, keepdim=True))
        return gradient_NV.scatter_add_(-1, index_NK, gradient_NK), None
