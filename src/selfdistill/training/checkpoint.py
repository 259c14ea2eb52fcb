"""Checkpoints as plain Hugging Face folders, complete or absent.

A folder is written beside its place and renamed, so that an interruption never leaves half a checkpoint under its
name. A resumed run writes its checkpoints again, with the same bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers


def checkpoint_name(step: int) -> str:
    return f"step-{step}"


def save_checkpoint(model: Any, tokenizer: Any, folder: Path, step: int, dtype: torch.dtype) -> Path:
    """Write model and tokenizer to `folder/step-N`, weights in `dtype`; return its path."""
    target = folder / checkpoint_name(step)
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    weights = None
    if dtype != torch.float32:
        weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    replace_folder(partial, target)
    return target


def replace_folder(partial: Path, target: Path) -> None:
    """Put a finished folder in its place; an older one there is removed first."""
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    else:
        partial.rename(target)
