"""AdamW, its schedule and gradient clipping (docs/method.md 7.5).

The schedule counts training steps, not updates: all updates of a step have the same learning rate. As in the paper's
code the first warm-up step has learning rate 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from selfdistill.schema.common import Optimiser
from selfdistill.training.sharding import whole


def make_adamw(model: Any, settings: Optimiser) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, weight decay on all of them as in the paper's code."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )


def learning_rate(settings: Optimiser, step: int, steps: int) -> float:
    """Learning rate of training step `step` (from 1) of `steps`."""
    done = step - 1
    if done < settings.warmup_steps:
        return settings.learning_rate * done / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (done - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    fraction = settings.final_fraction + (1 - settings.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.learning_rate * fraction


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def clear_gradients(model: Any) -> None:
    """Set all gradients to zero, creating missing ones: a step without a signal is still an optimiser step."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()


def gradients(model: Any) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def clip_gradients(gradient_list: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients to a norm of at most `max_norm`; return the norm before scaling."""
    gradient_list = list(gradient_list)
    norm = float(whole(torch.nn.utils.get_total_norm(gradient_list)))
    if norm > max_norm:
        torch._foreach_mul_(gradient_list, max_norm / (norm + 1e-6))
    return norm
