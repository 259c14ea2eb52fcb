"""A network that is not trained, held in bfloat16 where that changes no bit of what it computes.

Base models are published in bfloat16, so the float32 copy of a weight W is exact, and with bfloat16 as compute type a
matrix product rounds W back to what it was. So W may as well stay in bfloat16, at half the memory:

    linear layer    W in bfloat16; autocast leaves it as it is
    embedding       W in bfloat16; its rows become float32, as the layers that follow had them
    all else        float32: norms multiply in the type of their weight
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Layers that use their weight in one product or look-up, and in no other way. Derived classes may do more.
_LAYERS = (nn.Linear, nn.Embedding)
#: Numbers that are compared at a time.
_BLOCK = 2**24


def narrow_weights(model: nn.Module, stored: Iterable[str] | None = None) -> dict[int, Tensor]:
    """Float32 parameters, by id, that may be held in bfloat16: only such layers have them, and nothing is rounded.

    `stored`: names of the weights that are bfloat16 in the model's folder, for a model without memory.
    """
    names = None if stored is None else set(stored)
    owners: dict[int, list[bool]] = {}
    found: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            fits = type(module) in _LAYERS and name == "weight" and parameter.dtype == torch.float32
            owners.setdefault(id(parameter), []).append(fits)
            if names is None or f"{path}.{name}" in names:
                found[id(parameter)] = parameter
    found = {key: parameter for key, parameter in found.items() if all(owners[key])}
    return found if names is not None else {key: one for key, one in found.items() if is_exact(one)}


@torch.no_grad()
def is_exact(tensor: Tensor) -> bool:
    """Whether bfloat16 holds every number of a float32 tensor."""
    return all(torch.equal(part, part.bfloat16().float()) for part in tensor.flatten().split(_BLOCK))


def stored_in_bfloat16(folder: Path) -> list[str]:
    """Names of the bfloat16 weights in a model folder."""
    from safetensors import safe_open

    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names += [name for name in file.keys() if file.get_slice(name).get_dtype() == "BF16"]  # noqa: SIM118
    return names


def widen_embeddings(model: nn.Module) -> None:
    """Let embeddings in bfloat16 give float32, as their float32 copies did."""
    for module in model.modules():
        if type(module) is nn.Embedding and module.weight.dtype == torch.bfloat16:
            module.register_forward_hook(_as_float32)


def _as_float32(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return output.float()
