"""Attention over sequences that lie end to end in one row of the batch: no padding, and no T x T mask.

    [ a a a a | b b | c c c ]      boundaries 0, 4, 6, 9      position t sees its own sequence up to t, in its window

torch's variable-length attention (flash attention, built into torch) takes such boundaries. Here the library's mask is
replaced by them; whatever else a model is asked for (a cache, padding, one sequence) is computed as before. The kernel
needs a GPU and 16-bit types. It is tried before it is chosen: on this GPU, with the model's heads and window.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from selfdistill.training import windows
from selfdistill.training.distributed import World

_LOG = logging.getLogger(__name__)

#: Under this name the library finds the two functions.
IMPLEMENTATION = "varlen_end_to_end"
#: Architectures whose attention is plain scaled products, in windows or not, and that pass their mask on as it is.
ARCHITECTURES = {"llama", "mistral", "olmo2", "olmo3", "qwen2", "qwen3", "smollm3"}
_KINDS = {"full_attention", "sliding_attention"}
#: Relative error of outputs and gradients that bfloat16 may show.
_TOLERANCE = 3e-2
#: Lengths of the sequences of a trial: shorter and longer than the kernel's blocks.
_TRIAL = (3, 300, 61)
_TRIAL_WINDOW = 50


class Boundaries(NamedTuple):
    """Where sequences begin in the row, and the row's end [n + 1] (int32); tokens of the longest.

    The same of keys and values, where a cache holds the first part of each sequence (None: there is no cache).
    """

    starts: Tensor
    longest: int
    key_starts: Tensor | None = None
    longest_keys: int = 0


def choose_attention(model: Any, dtype: torch.dtype, world: World) -> None:
    """Let a model take sequences end to end where it, this GPU and the type allow that. Collective.

    Layers with a sliding window attend in blocks otherwise.
    """
    windows.attend_in_windows(model)
    if world.device.type != "cuda" or dtype != torch.bfloat16 or not _is_known(model):
        return
    config = model.config.get_text_config()
    heads, size = config.num_attention_heads, getattr(config, "head_dim", None)
    size = size or config.hidden_size // heads
    problem = fault(heads, config.num_key_value_heads, size, getattr(config, "sliding_window", None), world.device)
    if problem:
        _LOG.warning("rows are padded, since torch's variable-length attention does not work here: %s", problem)
    if not world.any(problem is not None):
        model.set_attn_implementation(IMPLEMENTATION)


def fault(heads: int, kv_heads: int, size: int, window: int | None, device: torch.device) -> str | None:
    """Why torch's kernel cannot be used for heads of this size, or None. It is tried, forwards and backwards."""
    try:
        errors = [_trial(heads, kv_heads, size, one, device) for one in {None, window and min(window, _TRIAL_WINDOW)}]
        errors.append(_trial_of_cache(heads, kv_heads, size, device))
    except (RuntimeError, TypeError, ValueError) as error:  # Of the kernel, or of a torch with another signature.
        return str(error).strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
    worst = max(errors)
    return None if worst <= _TOLERANCE else f"its results differ by {worst:.1%}"


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Boundaries | None,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """As the library's `sdpa_attention_forward`: heads first [B, heads, T, D], the result [B, T, heads, D]."""
    if not isinstance(attention_mask, Boundaries):
        return windows.attention(module, query, key, value, attention_mask, sliding_window, scaling=scaling, **settings)
    # Norms and rotations of queries and keys leave float32 behind, which autocast does not know of this operation.
    is_cast = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if is_cast else query.dtype
    tokens = (tensor.transpose(1, 2).flatten(0, 1).to(dtype) for tensor in (query, key, value))
    return _attend(*tokens, attention_mask, sliding_window, scaling).unflatten(0, (len(query), -1)), None


def mask(
    *, batch_size: int, q_length: int, kv_length: int, q_offset: int, mask_function: Callable, **settings: Any
) -> Tensor | Boundaries | None:
    """As the library's `sdpa_mask`, but boundaries where it found, by positions, several sequences in one row.

    Also where rows without padding on the left go on after cached keys: a teacher's prompt that is read once.
    """
    is_whole = settings.get("attention_mask") is None and not settings.get("use_vmap")
    if is_whole and 1 < q_length < kv_length == q_offset + q_length and mask_function is causal_mask_function:
        starts = torch.arange(batch_size + 1, dtype=torch.int32, device=settings.get("device"))
        return Boundaries(starts * q_length, q_length, starts * kv_length, kv_length)
    is_packed = batch_size == 1 and q_length == kv_length and q_offset == 0 and settings.get("attention_mask") is None
    if not is_packed or settings.get("allow_is_causal_skip", True) or settings.get("use_vmap"):
        return windows.mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
            mask_function=mask_function, **settings,
        )  # fmt: skip
    before = torch.arange(q_length - 1, device=settings.get("device"))
    starts = (~mask_function(0, 0, before + 1, before)).nonzero()[:, 0] + 1
    starts = functional.pad(functional.pad(starts, (1, 0)), (0, 1), value=q_length)
    return Boundaries(starts.int(), int(starts.diff().max()))


def _is_known(model: Any) -> bool:
    """Whether this is the plain attention of a known architecture, as the library or `windows` computes it."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    is_plain = kinds <= _KINDS and not getattr(config, "attention_dropout", 0.0)
    present = model.config._attn_implementation
    return config.model_type in ARCHITECTURES and is_plain and present in ("sdpa", windows.IMPLEMENTATION)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, where: Boundaries, window: int | None, scale: float | None
) -> Tensor:
    """Causal attention of tokens [T, heads, D] within their sequences, to `window` positions with their own."""
    left = -1 if window is None else window - 1
    keys = (where.starts, where.longest) if where.key_starts is None else (where.key_starts, where.longest_keys)
    return varlen_attn(
        query, key, value, where.starts, keys[0], where.longest, keys[1],
        scale=scale, window_size=(left, 0), enable_gqa=True,
    )  # fmt: skip


def _trial(heads: int, kv_heads: int, size: int, window: int | None, device: torch.device) -> float:
    """Largest relative error of outputs and gradients of three short sequences, against float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(_TRIAL), count, size) for count in (heads, kv_heads, kv_heads, heads)]
    *inputs, weight = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes)
    starts = torch.tensor([0, *itertools.accumulate(_TRIAL)], dtype=torch.int32, device=device)
    where = Boundaries(starts, max(_TRIAL))
    inputs = [tensor.requires_grad_() for tensor in inputs]
    found = _attend(*inputs, where, window, None)
    plain = [tensor.detach().float().requires_grad_() for tensor in inputs]
    expected = _plain(*plain, window)
    pairs = [
        (found, expected),
        *zip(_gradients(found, inputs, weight), _gradients(expected, plain, weight), strict=True),
    ]
    return max(float(((one.float() - other).norm() / other.norm()).detach()) for one, other in pairs)


def _trial_of_cache(heads: int, kv_heads: int, size: int, device: torch.device) -> float:
    """Relative error of the last tokens of two rows, whose first tokens are cached, against the whole rows."""
    rows, length, last = 2, _TRIAL[1], _TRIAL[0]
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows * length, count, size) for count in (heads, kv_heads, kv_heads)]
    query, key, value = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
    whole = _attend(query, key, value, Boundaries(starts * length, length), None, None)
    own = query.unflatten(0, (rows, length))[:, -last:].flatten(0, 1)
    found = _attend(own, key, value, Boundaries(starts * last, last, starts * length, length), None, None)
    expected = whole.unflatten(0, (rows, length))[:, -last:].flatten(0, 1).float()
    return float((found.float() - expected).norm() / expected.norm())


def _gradients(output: Tensor, inputs: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output * weight.to(output.dtype)).sum(), inputs)


def _plain(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """What `_attend` computes for the sequences of a trial, by a mask of all pairs."""
    sequence = torch.repeat_interleave(torch.arange(len(_TRIAL)), torch.tensor(_TRIAL)).to(query.device)
    place = torch.arange(len(sequence), device=query.device)
    back = place[:, None] - place[None]
    seen = (sequence[:, None] == sequence[None]) & (back >= 0) & (back < (window or len(place)))
    tokens = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return functional.scaled_dot_product_attention(*tokens, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, mask)
