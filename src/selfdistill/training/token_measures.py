"""Loss, gradient and gap of single tokens of finished completions, for diagnostics (docs/method.md 13.2).

    S   student on the prompt                      gap = log T(y) - log S(y)
    T   base model that has read a solution        PMI = log T(y) - log P(y)
    P   base model on the prompt                   loss = D(S, T), KL = KL(S || T)

The gradient of a token is the norm of the loss's gradient in its own logits. The gradient of a class of tokens is the
norm, over all weights, of the gradient of (sum of their losses) / (all tokens). Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfdistill.losses import divergence, entropy, token_logprobs
from selfdistill.training.micro_batches import plan_micro_batches
from selfdistill.training.network import Network, backward_through_head


@dataclass(frozen=True)
class Shown:
    """A completion, the prompt it answers, and the prompt with a solution that the teacher reads."""

    prompt_ids: Sequence[int]
    context_ids: Sequence[int]
    completion_ids: Sequence[int]


@dataclass(frozen=True)
class TokenMeasures:
    """Values of one completion's tokens [N]; `alternatives`: the student's most likely token besides the sampled."""

    loss: NDArray[np.float64]
    kl: NDArray[np.float64]
    gap: NDArray[np.float64]
    pmi: NDArray[np.float64]
    logit_gradient: NDArray[np.float64]
    student_entropy: NDArray[np.float64]
    teacher_entropy: NDArray[np.float64]
    alternatives: NDArray[np.float64]


def token_measures(
    student: Network, base: Network, rows: Sequence[Shown], alpha: float, budget: int
) -> list[TokenMeasures]:
    """The measures of each completion; `budget`: tokens of one forward pass."""
    found: dict[int, TokenMeasures] = {}
    for places in _micro_batches(rows, budget):
        chosen = [rows[place] for place in places]
        parts = [_chunk(*logits, targets, alpha) for *logits, targets in _logits(student, base, chosen)]
        values = torch.cat(parts, -1).double().cpu().numpy()
        ends = np.cumsum([len(row.completion_ids) for row in chosen])[:-1]
        for place, part in zip(places, np.split(values, ends, axis=-1), strict=True):
            found[place] = TokenMeasures(*part)
    return [found[place] for place in range(len(rows))]


def class_gradients(
    student: Network, base: Network, rows: Sequence[Shown], weights: dict[str, list[Tensor]], alpha: float, budget: int
) -> dict[str, float]:
    """For each name the gradient norm of the sum of losses, each times the weight of its token in its row."""
    norms = {}
    for name, of_row in weights.items():
        student.model.zero_grad(set_to_none=True)
        for places in _micro_batches(rows, budget):
            chosen = [rows[place] for place in places]
            weights_N = torch.cat([of_row[place] for place in places]).to(student.device)
            with _shown(base, chosen) as (teacher_of, _):
                packed = _pack(student, chosen)

                def loss_of_chunk(part: slice, logits: Tensor, of=teacher_of, weights_N=weights_N) -> Tensor:
                    losses = divergence(logits, of(part), alpha=alpha, top_k=None, add_tail=False)
                    return (losses * weights_N[part]).sum()

                backward_through_head(student, student.hidden(packed), loss_of_chunk)
        squares = [p.grad.float().square().sum() for p in student.model.parameters() if p.grad is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt())
    student.model.zero_grad(set_to_none=True)
    return norms


def _micro_batches(rows: Sequence[Shown], budget: int) -> list[list[int]]:
    student = [len(row.prompt_ids) + len(row.completion_ids) for row in rows]
    teacher = [len(row.context_ids) + len(row.completion_ids) for row in rows]
    return plan_micro_batches(student, teacher, budget)


def _pack(network: Network, rows: Sequence[Shown], *, with_context: bool = False):
    prompts = [row.context_ids if with_context else row.prompt_ids for row in rows]
    return network.pack(prompts, [row.completion_ids for row in rows])


@contextmanager
def _shown(base: Network, rows: Sequence[Shown]) -> Iterator[tuple]:
    """Functions from a slice of tokens to the logits of the base model with the solution, and without."""
    with torch.no_grad():
        hidden = [base.hidden(_pack(base, rows, with_context=shown)) for shown in (True, False)]

    def logits_of(states: Tensor):
        @torch.no_grad()
        def of(part: slice) -> Tensor:
            return head(states[part])

        return of

    with base.head() as head:
        yield logits_of(hidden[0]), logits_of(hidden[1])


def _logits(student: Network, base: Network, rows: Sequence[Shown]) -> Iterator[tuple[Tensor, ...]]:
    """Logits of S, T and P [n, V], and targets [n], chunk by chunk."""
    packed = _pack(student, rows)
    with torch.no_grad():
        hidden = student.hidden(packed)
    with student.head() as head, _shown(base, rows) as (teacher_of, plain_of):
        for start in range(0, len(hidden), student.chunk_tokens()):
            part = slice(start, min(start + student.chunk_tokens(), len(hidden)))
            with torch.no_grad():
                logits = head(hidden[part])
            yield logits, teacher_of(part), plain_of(part), packed.targets_N[part]


def _chunk(student_NV: Tensor, teacher_NV: Tensor, plain_NV: Tensor, targets_N: Tensor, alpha: float) -> Tensor:
    """The fields of TokenMeasures as one tensor [fields, n]."""
    leaf_NV = student_NV.detach().requires_grad_()
    loss_N = divergence(leaf_NV, teacher_NV, alpha=alpha, top_k=None, add_tail=False)
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), leaf_NV)
    with torch.no_grad():
        teacher_N = token_logprobs(teacher_NV, targets_N)
        values = {
            "loss": loss_N,
            "kl": divergence(student_NV, teacher_NV, alpha=1.0, top_k=None, add_tail=False),
            "gap": teacher_N - token_logprobs(student_NV, targets_N),
            "pmi": teacher_N - token_logprobs(plain_NV, targets_N),
            "logit_gradient": gradient_NV.norm(dim=-1),
            "student_entropy": entropy(student_NV),
            "teacher_entropy": entropy(teacher_NV),
            "alternatives": student_NV.scatter(-1, targets_N[:, None], -torch.inf).argmax(-1).float(),
        }
        return torch.stack([values[field.name].detach().float() for field in fields(TokenMeasures)])
