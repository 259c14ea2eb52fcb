"""Hidden states of several completions of one long prompt, which is read once.

    prompt without its last token [1, P]  ->  keys and values of each layer
    last token and completion of each row [R, T]  ->  hidden states, with these keys and values before their own

Exact, up to rounding. Only without gradient, and where every layer attends to every position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from selfdistill.training.network import FLASH_ATTENTION, Network, pack

#: What is read beside other ranks, which read a prompt: one token, as the last is left to the rows.
_NOTHING = (0, 0)

#: Tokens of a prompt from which on two passes take less time than one.
LEAST_TOKENS = 512


class _Prefix(DynamicLayer):
    """Keys and values of one row, which stand before those of all rows; what a pass adds is not kept."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.keys, self.values = layer.keys, layer.values
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = len(key_states)
        return tuple(
            torch.cat([before.expand(rows, -1, -1, -1), own], dim=-2)
            for before, own in ((self.keys, key_states), (self.values, value_states))
        )


@dataclass(frozen=True)
class Reading:
    """How the teacher reads the prompts of a pass. `is_shared`: its rows have one long prompt, which is read once;
    `is_kept`: for the next micro-batch too. `is_common`: all ranks do a pass to read a prompt here, be it an idle one.
    """

    is_shared: bool = False
    is_kept: bool = False
    is_common: bool = False


class Prefixes:
    """Prompts that were read for a micro-batch and are kept for the next ones, by prompt and network."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[int, ...], int], DynamicCache] = {}

    def keep(self, prompts: Iterable[Sequence[int]] = ()) -> None:
        """Free all others. To be called before each micro-batch, and before the weights change."""
        wanted = {tuple(prompt) for prompt in prompts}
        self._kept = {key: cache for key, cache in self._kept.items() if key[0] in wanted}

    def hidden(
        self,
        network: Network,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        reading: Reading,
    ) -> Tensor:
        """As `Network.hidden` of these rows [N, H], in evaluation mode."""
        key = tuple(prompts[0]), id(network)
        cache = self._kept.get(key) if reading.is_shared else None
        with network.evaluating():
            if reading.is_shared and cache is None:
                cache = read_prompt(network, prompts[0])
                if reading.is_kept:
                    self._kept[key] = cache
            elif reading.is_common:
                read_prompt(network, _NOTHING)
            if cache is None:
                return network.hidden(network.pack(prompts, completions))
            return hidden_after_prompt(network, prompts[0], completions, cache)


def is_long_and_same(prompts: Sequence[Sequence[int]], least: int = 2) -> bool:
    """Whether these rows, at least so many, have one prompt that is long enough to be read once for all of them."""
    return (
        len(prompts) >= least
        and len(prompts[0]) >= LEAST_TOKENS
        and all(prompt == prompts[0] for prompt in prompts[1:])
    )


def can_share(network: Network) -> bool:
    """Whether every layer of the network keeps every position, and its attention takes keys that were kept."""
    if network.model.config._attn_implementation in FLASH_ATTENTION:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=network.model.config).layers)


@torch.no_grad()
def read_prompt(network: Network, prompt: Sequence[int]) -> DynamicCache:
    """Keys and values of a prompt without its last token; passes that use them leave them as they are."""
    cache = DynamicCache(config=network.model.config)
    network.states(torch.tensor([prompt[:-1]], device=network.device), past_key_values=cache, use_cache=True)
    cache.layers = [_Prefix(layer) for layer in cache.layers]
    return cache


@torch.no_grad()
def hidden_after_prompt(
    network: Network, prompt: Sequence[int], completions: Sequence[Sequence[int]], cache: DynamicCache
) -> Tensor:
    """As `Network.hidden` of the rows that this prompt, which was read, makes with each completion [N, H]."""
    packed = pack([prompt[-1:]] * len(completions), completions, network.device)
    states = network.states(packed.ids_BT, past_key_values=cache)
    return states.flatten(0, 1).index_select(0, packed.positions_N)
