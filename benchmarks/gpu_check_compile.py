"""The part of gpu_check.py that compares compiled losses and layers (torch.compile) with plain ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gpu_check import Case, Line, error, layer_stack, timed
from gpu_check_attention import chosen_attention
from gpu_check_losses import loss_block

#: Tokens of a loss block on a GPU, as in training.
_TOKENS = 512


def compiled(case: Case) -> Iterator[Line]:
    """On a CPU only the tracing is tried, since the C++ compiler takes minutes."""
    from selfdistill.training import compilation

    usual = compilation.BACKEND
    compilation.BACKEND = usual if case.device.type == "cuda" else "eager"
    try:
        problem = compilation.fault(case.device, torch.bfloat16, None, chosen_attention(case))
        if problem:
            limit = 0.0 if case.device.type == "cuda" else None
            yield Line("compile", "torch.compile", None, limit=limit, note=f"does not work here: {problem}")
            return
        yield from _losses(case)
        yield from _layers(case)
    finally:
        compilation.BACKEND = usual


def _losses(case: Case) -> Iterator[Line]:
    from selfdistill.losses import compile_losses
    from selfdistill.training import compilation

    run = loss_block(case, _TOKENS, case.device, torch.bfloat16)
    expected, plain = run(), timed(run, case)
    compile_losses(case.device.type, compilation.BACKEND)
    try:
        first = timed(run, case, warm=0, repeats=1)
        found, fused = run(), timed(run, case)
    finally:
        compile_losses(case.device.type, None)
    for name, one, other in zip(("hidden states", "head"), found, expected, strict=True):
        yield Line("compile", f"loss: gradient of {name}", error(one, other), "relative error", limit=2e-2)
    yield Line("compile", "loss: first call, with compiling", first, "s")
    yield Line("compile", f"loss of {_TOKENS} tokens, plain", 1e3 * plain, "ms")
    yield Line("compile", f"loss of {_TOKENS} tokens, compiled", 1e3 * fused, "ms")


def _layers(case: Case) -> Iterator[Line]:
    from selfdistill.training.compilation import compile_layers

    model, run = layer_stack(case, chosen_attention(case))

    def results() -> list[torch.Tensor]:
        model.zero_grad()
        return [run(), model.model.layers[0].mlp.up_proj.weight.grad.clone()]

    expected, plain = results(), timed(run, case)
    compile_layers(model)
    first = timed(run, case, warm=0, repeats=1)
    found, fused = results(), timed(run, case)
    for name, one, other in zip(("hidden states", "gradient of a weight"), found, expected, strict=True):
        yield Line("compile", f"layers: {name}", error(one, other), "relative error", limit=5e-2)
    yield Line("compile", "layers: first call, with compiling", first, "s")
    for name, seconds in (("plain", plain), ("compiled", fused)):
        speed = case.tokens * case.layers / seconds
        yield Line("compile", f"one layer, forward and backward, {name}", speed, "tokens/s")
