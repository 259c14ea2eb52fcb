"""One decoding step of a causal model with its KV cache: for any model, and a faster one for Llama's family.

Decoding with a small model is dominated by the overhead of a few hundred small operations. For architectures with plain
pre-norm layers (Llama, Qwen2, Qwen3: the toy and most models of the study) `DirectDecoder` needs about a fifth as many
operations for a step; prompts still go through the model's own forward pass. All other models (sliding windows, other
norms, adapters, mixed precision) use `LibraryDecoder`. Both give the same logits.

Shape suffixes: A rows, T prompt tokens, S positions in the cache, K key-value heads, Q query heads per key-value head,
D width of a head, L layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selfdistill.generation.cache import is_full_attention, make_cache, select_rows

_DIRECT_ARCHITECTURES = {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
#: Rotary embeddings that depend on the position alone, not on the length of the sequence.
_FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}
#: Positions added to the direct cache at a time.
_BLOCK = 64


class LibraryDecoder:
    """Uses the model's own forward pass; works for any causal model of the library."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache = make_cache(model.config)

    def prefill(self, ids_AT: Tensor, mask_AT: Tensor | None, positions_AT: Tensor) -> Tensor:
        """Logits [A, V] after the last token of each left-padded prompt; mask None when nothing is padded."""
        return self._forward(ids_AT, mask_AT, positions_AT)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may appear several times."""
        select_rows(self.cache, rows)

    def step(self, tokens_A: Tensor, mask_AS: Tensor | None, positions_A: Tensor) -> Tensor:
        """Logits [A, V] after one more token; the mask covers that token too."""
        return self._forward(tokens_A[:, None], mask_AS, positions_A[:, None])

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()


class DirectDecoder(LibraryDecoder):
    """Prefill by the model, decoding steps written out here; see `is_direct` for the supported models."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norms = {
            module: _RootMeanSquareNorm(module) for name, module in model.named_modules() if name.endswith("norm")
        }

    def prefill(self, ids_AT: Tensor, mask_AT: Tensor | None, positions_AT: Tensor) -> Tensor:
        logits = super().prefill(ids_AT, mask_AT, positions_AT)
        self.seen = ids_AT.shape[1]
        self.keys_LAKSD = torch.stack([layer.keys for layer in self.cache.layers])
        self.values_LAKSD = torch.stack([layer.values for layer in self.cache.layers])
        self.cache = None
        return logits

    def select(self, rows: Tensor) -> None:
        self.keys_LAKSD = self.keys_LAKSD.index_select(1, rows)
        self.values_LAKSD = self.values_LAKSD.index_select(1, rows)

    def step(self, tokens_A: Tensor, mask_AS: Tensor | None, positions_A: Tensor) -> Tensor:
        decoder = self.model.model
        if self.seen == self.keys_LAKSD.shape[3]:
            self.keys_LAKSD = functional.pad(self.keys_LAKSD, (0, 0, 0, _BLOCK))
            self.values_LAKSD = functional.pad(self.values_LAKSD, (0, 0, 0, _BLOCK))
        self.seen += 1
        hidden = decoder.embed_tokens(tokens_A)
        cos, sin = decoder.rotary_emb(hidden, positions_A[:, None])
        half = cos.shape[-1] // 2
        signed_sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        rotary = (cos[:, None], signed_sin[:, None])
        mask = None if mask_AS is None else mask_AS[:, None, None, :]
        for index, layer in enumerate(decoder.layers):
            normed = self.norms[layer.input_layernorm](hidden)
            hidden = hidden + self._attention(layer.self_attn, normed, index, rotary, mask)
            hidden = hidden + layer.mlp(self.norms[layer.post_attention_layernorm](hidden))
        return self.model.lm_head(self.norms[decoder.norm](hidden)).float()

    def _attention(
        self, block: Any, hidden: Tensor, index: int, rotary: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """Query heads that share a key-value head are treated as its queries, so keys and values are not repeated."""
        rows, width = hidden.shape[0], block.head_dim
        keys_AKSD, values_AKSD = self.keys_LAKSD[index], self.values_LAKSD[index]
        heads = keys_AKSD.shape[1]
        queries = block.q_proj(hidden).view(rows, heads, -1, width)
        keys = block.k_proj(hidden).view(rows, heads, 1, width)
        if hasattr(block, "q_norm"):
            queries, keys = self.norms[block.q_norm](queries), self.norms[block.k_norm](keys)
        both = torch.cat([queries, keys], dim=2)
        cos, signed_sin = rotary
        both = torch.addcmul(both * cos, both.roll(width // 2, dims=-1), signed_sin)
        keys_AKSD[:, :, self.seen - 1] = both[:, :, -1]
        values_AKSD[:, :, self.seen - 1] = block.v_proj(hidden).view(rows, heads, width)
        attended = functional.scaled_dot_product_attention(
            both[:, :, :-1],
            keys_AKSD[:, :, : self.seen],
            values_AKSD[:, :, : self.seen],
            attn_mask=mask,
            scale=block.scaling,
        )
        return block.o_proj(attended.reshape(rows, -1))


class _RootMeanSquareNorm:
    """weight x / sqrt(mean(x^2) + eps) in four operations instead of seven; the weight is read once."""

    def __init__(self, module: Any) -> None:
        width = module.weight.shape[-1]
        self.weight = module.weight.detach() * math.sqrt(width)
        self.floor = torch.tensor(math.sqrt(width * module.variance_epsilon), device=self.weight.device)

    def __call__(self, hidden: Tensor) -> Tensor:
        size = torch.hypot(torch.linalg.vector_norm(hidden, dim=-1, keepdim=True), self.floor)
        return (hidden / size).mul_(self.weight)


def is_direct(model: Any) -> bool:
    """Whether `DirectDecoder` computes exactly this model's forward pass."""
    if type(model).__name__ not in _DIRECT_ARCHITECTURES or model.dtype != torch.float32:
        return False
    if torch.is_autocast_enabled(model.device.type):
        return False
    rotary = getattr(model.model.rotary_emb, "rope_type", "default")
    return rotary in _FIXED_ROTARY and is_full_attention(make_cache(model.config))


def make_decoder(model: Any) -> LibraryDecoder:
    """The fastest decoder that is exact for this model."""
    return DirectDecoder(model) if is_direct(model) else LibraryDecoder(model)
