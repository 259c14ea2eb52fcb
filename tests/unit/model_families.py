"""The study's three model families and the toy, a few layers of random weights each, as folders.

Architecture, tied or untied head, chat template and special tokens are the real ones (tests/golden/chat); width, depth,
vocabulary and weights are not. The vocabulary holds a few rows more than the tokenizer has tokens, as real ones do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from chat_tokenizers import REAL, tokenizer
from selfdistill.schema.toy import ToyArchitecture
from selfdistill.training.pretrain import build_model

# Two threads that share cores with anything else spin at every barrier; these models are too small to gain.
torch.set_num_threads(1)

FAMILIES = REAL
#: Positions of every family's model.
POSITIONS = 1024
#: Rows of the embedding beyond the tokenizer's tokens.
_SPARE_ROWS = 10


def family_config(name: str, **changes: Any) -> Any:
    """Configuration of a family's architecture, small."""
    from transformers import Olmo3Config, Qwen2Config, Qwen3Config

    made = tokenizer(name)
    common = {
        "vocab_size": len(made) + _SPARE_ROWS,
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.15,
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
        **changes,
    }
    if name == "qwen3":
        return Qwen3Config(**{"head_dim": 32, "rope_theta": 1_000_000.0, "tie_word_embeddings": True, **common})
    if name == "deepseek_r1_distill_qwen":
        return Qwen2Config(**{"rope_theta": 10_000.0, "tie_word_embeddings": False, **common})
    assert name == "olmo3_instruct"
    return Olmo3Config(
        **{
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_theta": 500_000.0,
            "tie_word_embeddings": False,
            **common,
        }
    )


def family_model(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """Random weights (float32), in evaluation mode; norms too, so that each of them matters."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(seed)
    if name == "toy":
        # The toy world's own heads are half as wide, which vLLM's CPU build cannot run.
        return build_model(ToyArchitecture(**{"head_dim": 32, "init_std": 0.15, **changes}), tokenizer("toy")).eval()
    model = AutoModelForCausalLM.from_config(family_config(name, **changes)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    made = tokenizer(name)
    # The real Qwen3 ends at two tokens: the end of a turn and the end of a text.
    eos = [made.eos_token_id, made.pad_token_id] if name == "qwen3" else made.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, bos_token_id=made.bos_token_id)
    return model


def save_family(name: str, folder: Path, **changes: Any) -> Any:
    """Write model, tokenizer and generation config as the hub lays them out; returns the model."""
    model = family_model(name, **changes)
    model.save_pretrained(folder)
    tokenizer(name).save_pretrained(folder)
    return model
