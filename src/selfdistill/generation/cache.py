"""A KV cache that grows in blocks.

The library's dynamic cache concatenates, so each decoding step copies all earlier positions. Full-attention layers here
write into a buffer with spare room and return views of it; other kinds of layers (sliding window, linear attention)
are those of the library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

#: Positions added at a time.
_BLOCK = 64


class _BlockLayer(DynamicLayer):
    """Behaves like its base class; `keys` and `values` are views of the filled part of the buffers."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, start, end)
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def _grow(self, key_states: Tensor, value_states: Tensor, filled: int, needed: int) -> None:
        capacity = -(-needed // _BLOCK) * _BLOCK
        grown = []
        for new, old in ((key_states, self.keys), (value_states, self.values)):
            buffer = new.new_empty(*new.shape[:2], capacity, new.shape[-1])
            if filled:
                buffer[:, :, :filled] = old
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self._buffers is None:
            return
        filled = self.get_seq_length()
        keys, values = self._buffers
        self._buffers = (keys.index_select(0, beam_idx), values.index_select(0, beam_idx))
        self.keys, self.values = self._buffers[0][:, :, :filled], self._buffers[1][:, :, :filled]


def make_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [_BlockLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_full_attention(cache: DynamicCache) -> bool:
    """Whether every layer keeps every position."""
    return all(type(layer) is _BlockLayer for layer in cache.layers)


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of every layer, in this order; a row may appear several times."""
    with torch.no_grad():
        cache.reorder_cache(rows)
