"""torch.compile of losses and layers: chosen on GPUs, and only where a trial shows that it computes the same.

    losses    each function that reads a vocabulary is one graph (`losses/compiled.py`)
    layers    each decoder layer is compiled in place, for training's passes alone

All layers of a kind share their compiled versions, and lengths are dynamic. A pass with a key-value cache runs the
plain layers: the torch sampler (the same modules, a cache that grows with every token) and a prompt that a teacher
reads once. Each layer knows its number in the cache, so each would be compiled for itself, and again whenever the cache
changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from selfdistill.losses import compile_losses, divergence, token_logprobs
from selfdistill.losses.compiled import reason
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import varlen
from selfdistill.training.distributed import World
from selfdistill.training.sharding import shard_model, whole

_LOG = logging.getLogger(__name__)

BACKEND = "inductor"
#: Versions of a layer's code that may exist: with and without gradient, with and without window, one row or several.
_MAX_VERSIONS = 64
#: Relative error that a trial may show.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
_TRIAL_VOCABULARY = 500


def choose_compilation(
    runtime: StageRuntime, world: World, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> bool:
    """Whether this training compiles its layers; losses are switched here. Collective.

    `dtype`: it computes in it. `attention`: the library's name of the implementation that training has chosen.
    """
    compiles = runtime.compiles and _agrees(fault(world.device, dtype, None, attention), world)
    # Only where every rank can compile: one that fails would leave the others waiting for it.
    compiles = compiles and (not world.is_sharded or _agrees(fault(world.device, dtype, world, attention), world))
    compile_losses(world.device.type, BACKEND if compiles else None)
    return compiles


def _agrees(problem: str | None, world: World) -> bool:
    """Whether there is no problem on any rank; says what it is."""
    if problem:
        _LOG.warning("nothing is compiled, since torch.compile does not work here: %s", problem)
    return not world.any(problem is not None)


def compile_layers(model: Any) -> None:
    """Compile each decoder layer in place, before it is sharded. A copy of the model is not compiled."""
    for layer in model.base_model.layers:
        layer.compile(dynamic=True, backend=BACKEND, recompile_limit=_MAX_VERSIONS)


def uncompiled() -> AbstractContextManager[Any]:
    """Nothing that is compiled is used, and nothing is compiled anew, within this context."""
    return torch.compiler.set_stance("force_eager")


def fault(
    device: torch.device, dtype: torch.dtype = torch.float32, world: World | None = None, attention: str = "sdpa"
) -> str | None:
    """Why nothing can be compiled for this device, or None: a small loss and two small layers are tried.

    With a `world` the layers are sharded over its ranks (collective). They have the implementation of `attention` that
    training uses, and where that takes sequences end to end, two of them in one row.
    """
    try:
        worst = max(_trial_of_losses(device), _trial_of_layers(device, dtype, world, attention))
    except Exception as error:  # Of a compiler, a linker, a driver: there is no common class.
        return reason(error)
    finally:
        compile_losses(device.type, None)
    return None if worst <= _TOLERANCES[dtype] else f"its results differ by {worst:.2%}"


def _trial_of_losses(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, _TRIAL_VOCABULARY, generator=generator).to(device) for _ in range(2))
    targets = torch.arange(5, device=device)

    def run(distil: Callable[..., Tensor], logprobs: Callable[..., Tensor]) -> list[Tensor]:
        leaf = student.clone().requires_grad_()
        losses = distil(leaf, teacher, alpha=0.5, top_k=20, add_tail=True) + logprobs(leaf, targets)
        return [losses, *torch.autograd.grad(losses.sum(), leaf)]

    functions = (divergence, token_logprobs)
    found = run(*(partial(function.compiled, BACKEND) for function in functions))
    return _worst(found, run(*(function.plain for function in functions)))


def _trial_of_layers(device: torch.device, dtype: torch.dtype, world: World | None, attention: str) -> float:
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        vocab_size=16, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(0)  # The same on all ranks.
        model = Qwen3Model(config).to(device).train()
    model.set_attn_implementation(attention)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shape = (1, 14) if attention == varlen.IMPLEMENTATION else (2, 7)
    ids, positions = torch.arange(14, device=device).view(shape), (torch.arange(14, device=device) % 7).view(shape)
    directions = torch.randn(*shape, 64, generator=torch.Generator().manual_seed(0)).to(device)

    def run(ranks: int = 1) -> list[Tensor]:
        model.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            states = model(ids, position_ids=positions, use_cache=False).last_hidden_state
        (states * directions / ranks).sum().backward()
        return [states.detach(), *(whole(parameter.grad).clone() for parameter in model.layers.parameters())]

    expected = run()
    compile_layers(model)
    if world is not None:
        shard_model(model, world.mesh, dtype)
    return _worst(run(1 if world is None else world.size), expected)


def _worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """Larger relative difference: of the first tensors (outputs), or of all others together (gradients)."""
    pairs = [(found[0], expected[0]), tuple(torch.cat([one.flatten() for one in of[1:]]) for of in (found, expected))]
    return max(float(((one - other).norm() / other.norm()).detach()) for one, other in pairs)
