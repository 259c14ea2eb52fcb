"""Under bfloat16 the matrices of sharded layers are gathered in bfloat16, and no number changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model_families import FAMILIES, family_model
from selfdistill.generation.loading import empty_model
from selfdistill.schema.common import Lora
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import sharding
from selfdistill.training.distributed import World
from selfdistill.training.network import Network, backward_through_head
from selfdistill.training.sharded_loading import placeholders, shard_from_folder
from selfdistill.training.sharding import whole
from selfdistill.training.weights import add_adapters
from test_training_processes import METHODS
from training_session import Session, make_spec, run_in_processes, without_times

CPU = torch.device("cpu")


@pytest.fixture
def gathered(monkeypatch) -> list[tuple[torch.dtype, int]]:
    """Types and bytes of what this process gathers from both ranks, in order."""
    found = []
    gather = torch.distributed.all_gather_single

    def recording(output_tensor, input_tensor, *arguments, **options):
        found.append((output_tensor.dtype, output_tensor.nbytes))
        return gather(output_tensor, input_tensor, *arguments, **options)

    monkeypatch.setattr(torch.distributed, "all_gather_single", recording)
    return found


def losses_and_gradients(model, rank: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Of two micro-batches, which each rank has for itself. Gradients of all ranks are summed."""
    network = Network(model, compute_dtype=torch.bfloat16)
    losses = []
    for first in (3, 5):
        packed = network.pack([[first, rank, 4, 1], [7, 2]], [[1, 2, 3, first], [5, rank, 6]])

        def loss(part, logits, targets=packed.targets_N):
            found = torch.nn.functional.cross_entropy(logits, targets[part], reduction="sum")
            losses.append(found.item())
            return found

        backward_through_head(network, network.hidden(packed), loss)
    return losses, {
        name: whole(parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [False, True])
def test_losses_and_gradients_are_those_of_autocast_to_the_bit(tmp_path, monkeypatch, gathered, family, adapters):
    """With checkpointing, as on GPUs, whose second forward pass ends early; the weights are read from a folder."""
    family_model(family).save_pretrained(tmp_path)

    def run():
        world = World.of(StageRuntime(processes=2))
        results, gathers_of_layers = [], []
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = empty_model(tmp_path).train()
            if adapters:
                with placeholders(model):
                    add_adapters(model, Lora(rank=4))
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            layer = model.base_model.layers[0]
            whole_layer, matrices = numbers(layer), sum(numbers(m) for m in layer.modules() if type(m) is nn.Linear)
            shard_from_folder(model, tmp_path, CPU, world.mesh, dtype)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.constant_(parameter.to_local(), 0.01)
            gathered.clear()
            results.append(losses_and_gradients(model, world.rank))
            expected = {torch.float32: (dtype, 4 * whole_layer), torch.bfloat16: (dtype, 2 * matrices)}[dtype]
            gathers_of_layers.append(gathered.count(expected))
            assert {found for found, _ in gathered} == {torch.float32, dtype}
        assert gathers_of_layers[0] == gathers_of_layers[1] == 2 * 2 * model.config.num_hidden_layers
        (losses, gradients), (narrow_losses, narrow_gradients) = results
        assert losses == narrow_losses and gradients.keys() == narrow_gradients.keys()
        for name, gradient in gradients.items():
            assert narrow_gradients[name].dtype == torch.float32
            assert torch.equal(gradient, narrow_gradients[name]), name

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]


@pytest.mark.parametrize("method", ["sdpo_ema", "sdpo_fixed"])
def test_a_resumed_run_ends_in_the_bytes_of_one_that_autocast_alone_computes(tmp_path, monkeypatch, method):
    """Also with a teacher that is held in bfloat16, which is gathered as it is."""
    spec = make_spec(METHODS[method], steps=3, checkpoint_every=3, precision="bfloat16")
    runtime = StageRuntime(processes=2, sharding="full", state_every_steps=1)
    session = Session(tmp_path / "narrow", spec, runtime)
    session.stop_requested = lambda: (tmp_path / "narrow/state/step-1").is_dir()
    assert run_in_processes(session) == [1, 1]
    session.stop_requested = lambda: False
    assert run_in_processes(session) == [0, 0]
    monkeypatch.setattr(sharding, "_besides_matrices", lambda layer: None)
    autocast = Session(tmp_path / "autocast", spec, runtime)
    assert run_in_processes(autocast) == [0, 0]
    assert session.weights() == autocast.weights()
    assert without_times(session.metrics()) == without_times(autocast.metrics())


def test_what_is_large_besides_matrices_stays_with_its_layer():
    layer = nn.ModuleDict({"matrix": nn.Linear(8, 8), "norm": nn.LayerNorm(2)})
    assert sharding._besides_matrices(layer) == [layer["norm"]]
    layer["experts"] = nn.LayerNorm(64)
    assert sharding._besides_matrices(layer) is None
