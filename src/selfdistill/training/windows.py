"""Attention with a sliding window in blocks: no T x T mask, and work that grows with T and not with its square.

The library's way multiplies all T x T pairs and hides most of them by a mask. Here the queries of a block of W
positions (W: the window) see the keys of their own block and of the one before, under one mask of W x 2W for all:

    queries  [block 1] [block 2] [block 3]  ...          position t sees t - W + 1 to t
    keys     [     1 ] [  1, 2 ] [  2, 3 ]  ...

Equal up to rounding. Only where the library would build the plain mask of the window: a cache, padding on the left, or
sequences that share a row take the library's way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

#: Under this name the library finds the two functions.
IMPLEMENTATION = "sdpa_in_windows"
#: Architectures that tell their attention which window a layer has, and have no other kind of layer.
_ARCHITECTURES = {"olmo3", "qwen2", "qwen3"}
_KINDS = {"full_attention", "sliding_attention"}


def attend_in_windows(model: Any) -> None:
    """Let a model's layers with a sliding window attend in blocks, where it has such layers and is known."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    is_known = config.model_type in _ARCHITECTURES and "sliding_attention" in kinds <= _KINDS
    if is_known and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(IMPLEMENTATION)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """As the library's `sdpa_attention_forward`: heads first [B, heads, T, D], the result [B, T, heads, D]."""
    length = query.shape[2]
    if attention_mask is not None or sliding_window is None or key.shape[2] != length or length <= sliding_window:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    queries, keys, values = (_blocks(tensor, sliding_window) for tensor in (query, key, value))
    first, _ = sdpa_attention_forward(module, queries[:, 0], keys[:, 0], values[:, 0], None, **settings)
    pairs = [torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=3).flatten(0, 1) for blocks in (keys, values)]
    mask = _band(sliding_window, query.device)
    rest, _ = sdpa_attention_forward(module, queries[:, 1:].flatten(0, 1), *pairs, mask, **settings)
    rest = rest.unflatten(0, (len(query), -1)).flatten(1, 2)
    return torch.cat([first, rest], dim=1)[:, :length], None


def mask(
    *, q_length: int, kv_length: int, q_offset: int, local_size: int | None = None, **settings: Any
) -> Tensor | None:
    """As the library's `sdpa_mask`; None also for the plain mask of a window, of which `attention` takes care."""
    is_plain = settings.get("attention_mask") is None and settings.get("allow_is_causal_skip", True)
    if local_size is not None and is_plain and q_length == kv_length and q_offset == 0:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, q_offset=q_offset, local_size=local_size, **settings)


def _blocks(tensor: Tensor, size: int) -> Tensor:
    """[B, heads, T, D] as blocks of positions [B, n, heads, size, D]; no position sees the zeros after the last one."""
    padded = functional.pad(tensor, (0, 0, 0, -tensor.shape[2] % size))
    return padded.unflatten(2, (-1, size)).transpose(1, 2)


def _band(size: int, device: torch.device) -> Tensor:
    """Which keys of a block and the one before [2 size] the queries of the block [size] see."""
    ones = torch.ones(size, 2 * size, dtype=torch.bool, device=device)
    return ones.triu(1) & ones.tril(size)


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, mask)
