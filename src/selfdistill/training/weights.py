"""A model's weights as in a plain Hugging Face folder: unsharded, with adapters merged.

LoRA keeps W fixed and trains W + (alpha / rank) B A, of which only A and B are parameters (Hu et al. 2021). A
checkpoint holds the sum, so all later stages read the same kind of folder. The paper trains all weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from selfdistill.schema.common import Lora
from selfdistill.schema.errors import UserError
from selfdistill.training.sharding import whole

_ADAPTER = "default"
_BASE, _A, _B = ".base_layer.", f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight"
_SCALE = "selfdistill_lora_scale"


def add_adapters(model: Any, settings: Lora) -> None:
    """Freeze the model and add adapters to its linear layers, in place; initially they change nothing (B = 0)."""
    import peft

    model.requires_grad_(False)
    targets = settings.target_modules or "all-linear"
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "weight")})
        raise UserError(
            f"lora.target_modules: the model has no layer {targets}. Its layers are {', '.join(names)}."
        ) from error
    setattr(model, _SCALE, settings.alpha / settings.rank)


def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the unsharded model with adapters merged, one at a time, on its device.

    Tied weights appear under each of their names and share memory, as in `state_dict()`. Collective where the model is
    sharded: every rank must iterate to the end.
    """
    state = model.state_dict()
    # By object and not by address: of a small tensor that is spread over many ranks, some hold nothing.
    objects = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    names_of: dict[int, list[str]] = {}
    for name in state:
        names_of.setdefault(id(objects[name]), []).append(name)
    scale = getattr(model, _SCALE, None)
    for names in names_of.values():
        if scale is not None and names[0].endswith((_A, _B)):
            continue
        tensor = whole(state[names[0]].detach())
        stem = names[0].replace(".base_layer.weight", "")
        if scale is not None and stem + _A in state:
            tensor = tensor + scale * (whole(state[stem + _B].detach()) @ whole(state[stem + _A].detach()))
        for name in names:
            yield plain_name(name), tensor


def plain_name(name: str) -> str:
    """The name of a weight of the base model in a plain folder, whether or not adapters are around it."""
    return name.replace(_BASE, ".")


def trained_parameters(model: Any) -> dict[str, Tensor]:
    """Parameters that training changes, by name, tied ones once: all of them, or the adapters."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
