"""Losses as a few fused kernels (torch.compile), on the devices where training switched that on.

Computed operation by operation, a reduction over the vocabulary reads and writes the logits [n, V] several times. The
compiler makes one kernel of each reduction. The number of tokens n is dynamic, so another one compiles nothing anew.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)

#: Types of devices on which `Compilable` functions are compiled, with the compiler's backend.
_BACKENDS: dict[str, str] = {}
#: Versions of one function that may exist: with and without gradient, 16-bit and 32-bit, settings.
_MAX_VERSIONS = 64


def compile_losses(device_type: str, backend: str | None) -> None:
    """Compile the losses on devices of this type from now on; with `backend` None no longer."""
    if backend is None:
        _BACKENDS.pop(device_type, None)
    else:
        _BACKENDS[device_type] = backend


class Compilable:
    """A pure function of tensors, each with one row per token [n, ...], and of settings passed by name.

    It must compile as a whole (no graph break). Where the compiler fails nevertheless, the losses go on uncompiled.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        functools.update_wrapper(self, function)
        self.plain = function

    def __call__(self, *tensors: Tensor, **settings: Any) -> Tensor:
        device = tensors[0].device.type
        # One token alone would be compiled for itself, since the compiler never treats a size of 1 as dynamic.
        if device not in _BACKENDS or len(tensors[0]) < 2:
            return self.plain(*tensors, **settings)
        try:
            return self.compiled(_BACKENDS[device], *tensors, **settings)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            _LOG.warning("losses are no longer compiled: %s", reason(error))
            compile_losses(device, None)
            return self.plain(*tensors, **settings)

    def compiled(self, backend: str, *tensors: Tensor, **settings: Any) -> Tensor:
        """The function as compiled code; raises what the compiler raises."""
        for tensor in tensors:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return _compiled(self.plain, backend)(*tensors, **settings)


def reason(error: Exception) -> str:
    """What went wrong: the first line of the message, and the second where the first only names the backend."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__


@functools.cache
def _compiled(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, backend=backend, recompile_limit=_MAX_VERSIONS)
