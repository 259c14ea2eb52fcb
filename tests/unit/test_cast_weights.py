"""Under bfloat16 no copies of the weights pile up in a forward pass, and the gradients are the same bits."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.training.network import Network, backward_through_head
from tiny import tiny_model

PROMPTS, COMPLETIONS = [[3, 4, 5], [6, 7]], [[8, 9, 10], [11, 12, 13, 14]]


class Casts(TorchDispatchMode):
    """Bytes of bfloat16 copies of matrices that are alive, and the most that were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_cast = function is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16
        if is_cast and isinstance(args[0], torch.nn.Parameter):
            self.alive += result.nbytes
            self.most = max(self.most, self.alive)
            weakref.finalize(result.untyped_storage(), self._freed, result.nbytes)
        return result

    def _freed(self, size: int) -> None:
        self.alive -= size


def step(checkpoints: bool, cached: bool, monkeypatch):
    """Most bytes of cast weights in the forward pass, and the gradients, of a network of eight layers."""
    model = tiny_model(40, hidden=64, layers=8).train()
    if checkpoints:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    network = Network(model, compute_dtype=torch.bfloat16)
    if cached:
        monkeypatch.setattr(network, "_casting", lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    with Casts() as casts:
        hidden = network.hidden(network.pack(PROMPTS, COMPLETIONS))
    backward_through_head(network, hidden, lambda part, logits: logits.log_softmax(-1)[:, 0].sum())
    return casts.most, [parameter.grad for parameter in model.parameters()]


def test_with_checkpointing_one_layer_is_cast_at_a_time(monkeypatch):
    found, gradients = step(True, False, monkeypatch)
    before, expected = step(True, True, monkeypatch)
    print(f"cast weights alive: {before:,} bytes with autocast's cache, {found:,} without")
    assert found <= before / 8
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("checkpoints", [False, True])
def test_gradients_are_the_same_bits_without_the_cache(monkeypatch, checkpoints):
    _, gradients = step(checkpoints, False, monkeypatch)
    _, expected = step(checkpoints, True, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
