"""Model folders: tokenizer, model, end tokens, and a sampler over them. Heavy imports stand inside the functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfdistill.generation.base import Sampler
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. UserError where a file or a library that it needs is missing."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (ImportError, OSError, ValueError, json.JSONDecodeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {reason}") from None


def load_model(folder: Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model in evaluation mode, float32. UserError where config/runtime.yaml wants a GPU and none is visible."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError("config/runtime.yaml says `device: cuda`, but no GPU is visible to this job.")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)


def empty_model(folder: Path) -> PreTrainedModel:
    """The float32 model in evaluation mode whose parameters have no memory (meta device); its buffers are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype="float32")
    model.tie_weights()  # The context gives each module a parameter of its own.
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def end_token_ids(folder: Path) -> list[int]:
    """All ids that end a completion: those of the generation configuration and the tokenizer's, sorted.

    A folder without generation_config.json has its generation configuration in config.json, as in the library.
    """
    from transformers import AutoConfig, GenerationConfig

    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder)
    else:
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    configured = generation.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in (*ids, load_tokenizer(folder).eos_token_id) if token is not None})


def sampler_class(engine: Literal["torch", "vllm"]) -> type[Sampler]:
    """The sampler of an engine, which need not be installed."""
    if engine == "vllm":
        from selfdistill.generation.vllm_sampler import VllmSampler

        return VllmSampler
    from selfdistill.generation.torch_sampler import TorchSampler

    return TorchSampler


def load_sampler(
    folder: Path,
    engine: Literal["torch", "vllm"],
    runtime: StageRuntime,
    *,
    max_positions: int,
    trained_model: Any = None,
    kv_cache_dtype: str = "auto",
) -> Sampler:
    """A sampler over the model in `folder`. `max_positions`: the longest sequence that will be asked for.
    `kv_cache_dtype`: of vLLM's cache.

    `trained_model`: the model that this process trains, in turns with sampling. The torch sampler uses its very
    weights, or loads its own where they are sharded; vLLM gives its GPU memory back between calls.
    """
    if engine == "vllm":
        from selfdistill.generation.vllm_sampler import VllmSampler

        return VllmSampler.load(
            folder,
            runtime,
            is_colocated=trained_model is not None,
            max_positions=max_positions,
            kv_cache_dtype=kv_cache_dtype,
        )
    from selfdistill.generation.torch_sampler import TorchSampler

    shares_model = trained_model is not None and runtime.sharding == "none"
    model = trained_model if shares_model else load_model(folder, runtime.device)
    return TorchSampler(
        model, end_token_ids(folder), max_batch_tokens=runtime.sampler_batch_tokens, shares_model=shares_model
    )
