"""The part of gpu_check.py that compares sequences end to end (torch's variable-length attention) with padded rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpu_check import Case, Line, error, timed

#: Lengths of the rows, as shares of the longest: half of a padded batch is padding.
_SHARES = (1.0, 0.6, 0.3, 0.1)
_WINDOW = 100


def chosen_attention(case: Case) -> str:
    """The implementation that a training in bfloat16 has here."""
    from selfdistill.training.varlen import IMPLEMENTATION

    return "sdpa" if _problem(case) else IMPLEMENTATION


def _problem(case: Case) -> str | None:
    from selfdistill.training.varlen import fault

    return fault(case.heads, max(1, case.heads // 4), case.hidden // case.heads, _WINDOW, case.device)


def attention(case: Case) -> Iterator[Line]:
    from selfdistill.training.varlen import IMPLEMENTATION

    kv_heads, size = max(1, case.heads // 4), case.hidden // case.heads
    problem = _problem(case)
    if problem:
        limit = 0.0 if case.device.type == "cuda" else None
        yield Line("attention", "torch's variable-length kernel", None, limit=limit, note=f"not here: {problem}")
        return
    (hidden, gradients, padded), (found, own, packed) = (
        _results(case, _model(case, kv_heads, size), name) for name in ("sdpa", IMPLEMENTATION)
    )
    yield Line("attention", "end to end: hidden states", error(found, hidden), "relative error", limit=2e-2)
    worst = max(error(one, other) for one, other in zip(own, gradients, strict=True))
    yield Line("attention", "end to end: worst gradient of a weight", worst, "relative error", limit=5e-2)
    tokens = sum(_lengths(case))
    yield Line("attention", "rows padded, forward and backward", tokens / timed(padded, case), "tokens/s")
    yield Line("attention", "rows end to end, forward and backward", tokens / timed(packed, case), "tokens/s")


def _model(case: Case, kv_heads: int, size: int) -> Any:
    """Two layers of an 8B model, one of them with a window."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=256, hidden_size=case.hidden, intermediate_size=case.intermediate, num_hidden_layers=2,
        num_attention_heads=case.heads, num_key_value_heads=kv_heads, head_dim=size, sliding_window=_WINDOW,
        use_sliding_window=True, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=case.tokens,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).to(case.device).train()


def _lengths(case: Case) -> list[int]:
    return [max(2, int(share * case.tokens)) for share in _SHARES]


def _results(
    case: Case, model: Any, implementation: str
) -> tuple[torch.Tensor, list[torch.Tensor], Callable[[], object]]:
    """Hidden states, gradients of the weights, and a call that computes both again."""
    from selfdistill.training.network import Network

    model.set_attn_implementation(implementation)
    network = Network(model, compute_dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(256, (length,), generator=generator).tolist() for length in _lengths(case)]
    packed = network.pack([row[:1] for row in rows], [row[1:] for row in rows])
    weights = list(model.model.layers.parameters())

    def run() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        hidden = network.hidden(packed)
        return hidden.detach(), torch.autograd.grad(hidden.float().square().sum(), weights)

    hidden, gradients = run()
    return hidden, list(gradients), run
