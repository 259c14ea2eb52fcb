"""Weights, gradients and optimiser sharded over ranks (FSDP2), and how they are gathered.

The mesh (`World.mesh`) has one dimension, or two: then each node has a copy, sharded over its ranks (HSDP). Weights are
gathered within the node, and gradients also summed over the nodes, once for each update (the head's own: each pass).

Each decoder layer is one FSDP group; everything else (embedding, last norm, head) belongs to the root group. Under
bfloat16 a layer's group has its matrices only: they are gathered in bfloat16, to which autocast would cast them at each
use. Its norms then belong to the root group, in float32. So all numbers are the same, and half the bytes move.

Gradients are summed, not averaged, since every loss coefficient already has the denominator of the whole mini-batch.
Functions that gather are collective: every rank must call them the same number of times.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Shard

#: Gradients of matrices come in bfloat16, as from autocast, and are summed in float32.
_IN_BFLOAT16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
#: Of a layer's parameters: what may be gathered in float32 for all layers at once.
_LARGEST_SHARE = 0.1


def last_hidden_states(model: Any, **inputs: Any) -> Tensor:
    """Hidden states [B, T, H] before the head, whether the model is sharded or not."""
    method = getattr(model, "sharded_hidden_states", None)
    return _hidden_states(model, **inputs) if method is None else method(**inputs)


def shard_model(model: Any, mesh: DeviceMesh, compute_dtype: torch.dtype = torch.float32) -> None:
    """Shard a model in place. Copies must be made before, because a sharded model cannot be copied."""
    to_root: list[nn.Module] = []
    for layer in model.base_model.layers:
        others = _besides_matrices(layer) if compute_dtype == torch.bfloat16 else None
        if others is None:
            fully_shard(layer, mesh=mesh)
            continue
        ignored = {parameter for module in others for parameter in module.parameters()}
        fully_shard(layer, mesh=mesh, mp_policy=_IN_BFLOAT16, ignored_params=ignored)
        to_root += others
    # A group has what lies below its module, layers with a group of their own excepted.
    model.of_root_group = nn.ModuleList(to_root)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    del model.of_root_group
    model.sharded_hidden_states = types.MethodType(_hidden_states, model)
    register_fsdp_forward_method(model, "sharded_hidden_states")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _besides_matrices(layer: nn.Module) -> list[nn.Module] | None:
    """Modules of a layer whose parameters autocast does not cast (norms), or None where they are not small and apart.

    The root group gathers them for all layers at once, so experts that are one parameter would take too much memory.
    """
    owners = [module for module in layer.modules() if next(module.parameters(recurse=False), None) is not None]
    others = [module for module in owners if type(module) is not nn.Linear]
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in others]
    is_small = sum(sizes) <= _LARGEST_SHARE * sum(parameter.numel() for parameter in layer.parameters())
    return others if is_small and not any(list(module.children()) for module in others) else None


def is_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)


def sum_over_nodes(model: Any, is_last: bool) -> None:
    """Let the next backward pass sum the gradients since the last sum over the nodes if it is the last of an update."""
    model.set_requires_all_reduce(is_last)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, on every rank; its gradient is summed over ranks and sharded again."""
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.full_tensor(grad_placements=[Partial()] * tensor.device_mesh.ndim)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_part(tensor: Tensor, value: Tensor) -> None:
    """Copy into a tensor that may be sharded (by its first dimension) this rank's part of `value`. Not collective."""
    local(tensor).copy_(local_part(tensor, value))


def local_part(tensor: Tensor, value: Tensor) -> Tensor:
    """This rank's part of a value that is cut as a tensor is: by its first dimension if that is sharded."""
    if not isinstance(tensor, DTensor):
        return value
    dimension = next(d for d, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
    parts = value.chunk(tensor.device_mesh.size(dimension))
    rank = tensor.device_mesh.get_local_rank(dimension)
    return parts[rank] if rank < len(parts) else value[:0]


def _hidden_states(model: nn.Module, *, use_cache: bool = False, **inputs: Any) -> Tensor:
    return model.base_model(**inputs, use_cache=use_cache).last_hidden_state
