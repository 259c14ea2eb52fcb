"""Weights of a sharded model, read from its folder: no process ever holds more than its own part and one tensor.

    empty model (parameters without memory)  ->  adapters  ->  sharded  ->  memory for the part  ->  part of each tensor

torch's distributed checkpoint reads the slices of safetensors files that a rank holds. Nothing is sent between ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import DeviceMesh

from selfdistill.generation.loading import load_model
from selfdistill.generation.weights import weight_names
from selfdistill.training.sharding import copy_part, shard_model
from selfdistill.training.weights import plain_name

_LOG = logging.getLogger(__name__)


def is_empty(model: Any) -> bool:
    """Whether parameters have no memory yet (`generation.loading.empty_model`)."""
    return any(parameter.is_meta for parameter in model.parameters())


@contextmanager
def placeholders(model: Any) -> Iterator[None]:
    """Give an empty model parameters of one number each, so that adapters, made where their layer is, have memory."""
    empty = {id(parameter): parameter for parameter in model.parameters() if parameter.is_meta}
    shown = {key: nn.Parameter(torch.zeros(()).expand(parameter.shape)) for key, parameter in empty.items()}
    _replace(model, shown)
    yield
    for key, parameter in empty.items():
        parameter.requires_grad_(shown[key].requires_grad)
    _replace(model, {id(shown[key]): parameter for key, parameter in empty.items()})


def _replace(model: nn.Module, by_id: dict[int, nn.Parameter]) -> None:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in by_id:
                module.register_parameter(name, by_id[id(parameter)])


def shard_from_folder(
    model: Any, folder: Path, device: torch.device, mesh: DeviceMesh, compute_dtype: torch.dtype = torch.float32
) -> None:
    """Shard an empty model in place and fill it. What has memory already (adapters, buffers) keeps its values."""
    adapters = {name: tensor.detach() for name, tensor in model.named_parameters() if not tensor.is_meta}
    buffers = dict(model.named_buffers())
    shard_model(model, mesh, compute_dtype)
    model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, value in adapters.items():
            copy_part(parameters.pop(name), value)
        for name, value in buffers.items():
            model.get_buffer(name).copy_(value)
        persistent = {name: model.get_buffer(name) for name in buffers if name in model.state_dict()}
        _read({plain_name(name): tensor for name, tensor in {**parameters, **persistent}.items()}, folder)


def _read(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors, sharded or not, from the folder, whatever its type. Names are those of the model."""
    if tensors.keys() <= weight_names(folder):
        checkpoint.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        return
    _LOG.warning("%s: the files name weights otherwise than the model does; each process loads all of it", folder)
    whole = load_model(folder).state_dict()
    for name, tensor in tensors.items():
        copy_part(tensor, whole[name])
