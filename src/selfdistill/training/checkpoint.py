"""Checkpoints as plain Hugging Face folders, complete or absent.

A folder is written under another name and then renamed, so an interruption never leaves half a checkpoint under the
final name. A resumed run writes the same bytes again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from selfdistill.files import move_into_place
from selfdistill.training.weights import plain_weights


def checkpoint_name(step: int) -> str:
    return f"step-{step}"


def save_checkpoint(
    model: Any, tokenizer: Any, folder: Path, step: int, dtype: torch.dtype, *, is_writer: bool = True
) -> None:
    """Write model and tokenizer to `folder/step-N`: weights in `dtype`, adapters merged.

    Collective where the model is sharded; only the rank with `is_writer` writes.
    """
    weights = collect_weights(model, dtype, keep=is_writer)
    if not is_writer:
        return
    target = folder / checkpoint_name(step)
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    transformers.utils.logging.disable_progress_bar()
    with torch.device("meta"):
        # Only its configuration is used: which weights are tied, and the names of the files.
        shell = transformers.AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    shell.generation_config = model.generation_config
    shell.save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    move_into_place(partial, target)


def collect_weights(model: Any, dtype: torch.dtype, *, keep: bool) -> dict[str, torch.Tensor]:
    """Unsharded weights in main memory; tied ones share it. With `keep` False only take part in the gathering."""
    collected: dict[str, torch.Tensor] = {}
    source: torch.Tensor | None = None
    copy: torch.Tensor | None = None
    for name, tensor in plain_weights(model):
        if keep:
            if tensor is not source:
                source, copy = tensor, tensor.to("cpu", dtype)
            collected[name] = copy
    return collected
