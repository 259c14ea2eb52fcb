"""The parts of gpu_check.py about the loss, with references of their own: plain operations, float64, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from gpu_check import Case, Line, error
from torch import Tensor

#: Student's logits, teacher's logits, sampled tokens, advantages -> a number a token.
Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def losses(case: Case) -> Iterator[Line]:
    generator = torch.Generator().manual_seed(0)
    rows = 64
    student, teacher = (2 * torch.randn(rows, case.vocabulary, generator=generator) for _ in range(2))
    targets = torch.randint(case.vocabulary, (rows,), generator=generator)
    advantages = torch.randn(rows, generator=generator)
    for name, (ours, plain) in functions(case.top_k).items():
        results = []
        for function, device, dtype in ((plain, "cpu", torch.float64), (ours, case.device, torch.float32)):
            leaf = student.to(device, dtype, copy=True).requires_grad_()
            found = function(leaf, teacher.to(device, dtype), targets.to(device), advantages.to(device, dtype))
            if found.requires_grad:
                found.sum().backward()
            results.append((found.detach(), leaf.grad))
        (expected, gradient), (found, own) = results
        yield Line("losses", name, error(found, expected), "relative error", limit=1e-4)
        if own is not None:
            yield Line("losses", f"{name}: gradient", error(own, gradient), "relative error", limit=1e-4)


def functions(top_k: int) -> dict[str, tuple[Function, Function]]:
    """The project's functions and the plain ones that they have to agree with."""
    from selfdistill.losses import divergence, entropy, grpo_token_loss, token_logprobs

    def grpo(student: Tensor, _: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
        logprobs = token_logprobs(student, targets)
        old = logprobs.detach() - 0.1
        return grpo_token_loss(logprobs, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=None)

    def distil(alpha: float, k: int | None) -> tuple[Function, Function]:
        return (
            lambda s, t, *_: divergence(s, t, alpha=alpha, top_k=k, add_tail=True),
            lambda s, t, *_: plain_divergence(s, t, alpha, k),
        )

    return {
        "divergence, top k and tail": distil(0.5, top_k),
        "divergence, whole vocabulary": distil(0.5, None),
        "reverse KL": distil(1.0, top_k),
        "GRPO": (grpo, plain_grpo),
        "entropy": (lambda s, *_: entropy(s), lambda s, *_: -(s.softmax(-1) * s.log_softmax(-1)).sum(-1)),
    }


def plain_divergence(student: Tensor, teacher: Tensor, alpha: float, top_k: int | None) -> Tensor:
    s, t = student.softmax(-1), teacher.softmax(-1)
    if top_k is not None:
        index = student.topk(top_k).indices
        s, t = (
            torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], -1)
            for chosen in (s.gather(-1, index), t.gather(-1, index))
        )
    if alpha == 1:
        return (s * (s / t).log()).sum(-1)
    mixture = (1 - alpha) * s + alpha * t
    return (1 - alpha) * (s * (s / mixture).log()).sum(-1) + alpha * (t * (t / mixture).log()).sum(-1)


def plain_grpo(student: Tensor, _: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    """The ratio is exp(0.1) everywhere, below the upper clip of 1.28."""
    chosen = student.log_softmax(-1)[torch.arange(len(targets)), targets]
    return -advantages * (chosen - chosen.detach()).exp() * math.exp(0.1)


class Headed:
    """As much of a causal model as the loss block asks for: an output matrix and the size of its vocabulary."""

    def __init__(self, head: torch.nn.Linear) -> None:
        self.head = head
        text = SimpleNamespace(vocab_size=head.out_features)
        self.config = SimpleNamespace(get_text_config=lambda: text, _attn_implementation="sdpa")

    def parameters(self) -> Iterator[torch.Tensor]:
        return self.head.parameters()

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head


def loss_block(case: Case, tokens: int, device: torch.device, dtype: torch.dtype) -> Callable[[], list[torch.Tensor]]:
    """A call that computes SDPO's loss from hidden states [tokens, H]; gives gradients of hidden states and head."""
    from selfdistill.losses import divergence
    from selfdistill.training.network import Network, backward_through_head

    generator = torch.Generator().manual_seed(0)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    states = [torch.randn(tokens, case.hidden, generator=generator).to(device, weights) for _ in range(2)]
    heads = []
    for _ in range(2):
        head = torch.nn.Linear(case.hidden, case.vocabulary, bias=False, device=device, dtype=weights)
        scale = 2 / case.hidden**0.5
        head.weight.data.copy_(torch.randn(case.vocabulary, case.hidden, generator=generator) * scale)
        heads.append(Network(Headed(head), compute_dtype=dtype))
    leaf = states[0].requires_grad_()

    def run() -> list[torch.Tensor]:
        leaf.grad = heads[0].model.head.weight.grad = None
        with heads[1].head() as teacher:

            def loss(part: slice, logits: torch.Tensor) -> torch.Tensor:
                with torch.no_grad():
                    shown = teacher(states[1][part])
                return divergence(logits, shown, alpha=0.5, top_k=case.top_k, add_tail=True).sum() / tokens

            backward_through_head(heads[0], leaf * 1, loss)
        return [leaf.grad, heads[0].model.head.weight.grad]

    return run


def head(case: Case) -> Iterator[Line]:
    """Heads are of a quarter of the width, so that float64 on the CPU takes seconds."""
    case = Case(**{**vars(case), "hidden": max(64, case.hidden // 16)})
    expected = loss_block(case, 96, torch.device("cpu"), torch.float64)()
    for dtype, limit in ((torch.float32, 5e-3), (torch.bfloat16, 1e-1)):
        found = loss_block(case, 96, case.device, dtype)()
        for name, own, other in zip(("hidden states", "head"), found, expected, strict=True):
            label = f"{str(dtype).removeprefix('torch.')}: gradient of {name}"
            yield Line("head", label, error(own, other), "relative error", limit=limit)
