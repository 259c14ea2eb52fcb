"""Weights as safetensors files, for an engine in other processes, which cannot take tensors directly."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
#: Tensors are collected on the CPU up to this many bytes and then written, so there is never a second whole copy.
_FILE_BYTES = 2 << 30


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """A new folder that only this user can enter; in memory (/dev/shm) where the system has it."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    return tempfile.TemporaryDirectory(prefix="selfdistill-weights-", dir=parent)


def write_weights(weights: Iterator[tuple[str, Any]], folder: Path) -> None:
    """Write named tensors into an empty folder, in files of bounded size; tied ones under each of their names."""
    from safetensors.torch import save_file

    waiting: dict[str, Any] = {}
    count = 0
    for name, tensor in weights:
        # A copy: tied tensors share memory, which the format does not allow.
        waiting[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if sum(held.nbytes for held in waiting.values()) >= _FILE_BYTES:
            save_file(waiting, folder / f"model-{count:05d}.safetensors")
            waiting, count = {}, count + 1
    if waiting:
        save_file(waiting, folder / f"model-{count:05d}.safetensors")


def read_weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Named weights of a folder, one at a time; a tied output matrix, which model folders leave out, is put in."""
    from safetensors import safe_open

    names: set[str] = set()
    embedding = None
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                embedding = tensor if name == EMBEDDING else embedding
                names.add(name)
                yield name, tensor
    if HEAD not in names and embedding is not None:
        yield HEAD, embedding


def holds_head(folder: Path) -> bool:
    """Whether the output matrix is among the files, tied or not."""
    return HEAD in weight_names(folder)


def weight_names(folder: Path) -> set[str]:
    """Names of all weights in the files."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names
