"""Weights sharded over the processes of each node, with a copy on each: four gloo processes, two a node."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import Replicate, Shard

from selfdistill.generation.loading import empty_model, load_model
from selfdistill.schema.common import Lora
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.distributed import World
from selfdistill.training.network import Network, backward_through_head
from selfdistill.training.sharded_loading import shard_from_folder
from selfdistill.training.sharded_state import _HashingWriter
from selfdistill.training.sharding import local, sum_over_nodes, whole
from test_training_processes import METHODS, assert_same_training, run_alone
from tiny import tiny_model
from training_session import TOKENIZER, Session, make_spec, run_in_processes, without_times

HYBRID = StageRuntime(state_every_steps=1, processes=2, sharding="hybrid")


def run_on_nodes(session) -> list[int]:
    return run_in_processes(session, processes=4, nodes=2)


@pytest.mark.parametrize("method", ["grpo", "sdpo_ema", "sdpo_trust_region", "sft"])
def test_two_nodes_with_copies_train_what_one_process_does(tmp_path, method):
    """One row in each micro-batch: an update takes several passes, and ranks with fewer rows add empty ones."""
    spec = make_spec(METHODS[method], steps=3, checkpoint_every=3)
    nodes = Session(tmp_path / "nodes", spec, HYBRID.model_copy(update={"micro_batch_tokens": 1}))
    assert run_on_nodes(nodes) == [0] * 4
    assert_same_training(run_alone(tmp_path / "one", spec), nodes)


def test_adapters_and_bfloat16_train_on_nodes_with_copies(tmp_path):
    for name, settings in {"adapters": {"lora": Lora(rank=4)}, "bfloat16": {"precision": "bfloat16"}}.items():
        spec = make_spec(METHODS["sdpo_fixed"], steps=2, checkpoint_every=2, **settings)
        # Rows by themselves, so that none is padded: bfloat16 shows it.
        alone = {"processes": 2, "micro_batch_tokens": 1}
        together = Session(tmp_path / name / "full", spec, StageRuntime(sharding="full", **alone))
        nodes = Session(tmp_path / name / "nodes", spec, StageRuntime(sharding="hybrid", **alone))
        assert run_in_processes(together) == [0, 0]
        assert run_on_nodes(nodes) == [0] * 4
        assert_same_training(together, nodes)


def test_each_node_has_every_weight_once(tmp_path):
    """Vocabulary and width that two processes do not share evenly; weights are read from their folder."""
    tiny_model(37, tied=False).save_pretrained(tmp_path)
    expected = load_model(tmp_path).state_dict()

    def run():
        world = World.of(HYBRID)
        model = empty_model(tmp_path)
        shard_from_folder(model, tmp_path, world.device, world.mesh)
        for name, tensor in model.state_dict().items():
            assert tensor.placements == (Replicate(), Shard(0))
            parts = expected[name].chunk(2)
            assert torch.equal(local(tensor), parts[world.rank % 2] if len(parts) > world.rank % 2 else parts[0][:0])
            assert torch.equal(whole(tensor), expected[name])
        Network(model).check_head()

    assert run_on_nodes(SimpleNamespace(run=run)) == [0] * 4


def test_gradients_are_summed_over_nodes_once_for_an_update(tmp_path, monkeypatch):
    """Three micro-batches. Layers: three sums within a node, one between nodes. The head's own gradient is summed both
    ways with each of them.
    """
    tiny_model(len(TOKENIZER), tied=False).save_pretrained(tmp_path)

    def run():
        world = World.of(HYBRID)
        model = empty_model(tmp_path).train()
        shard_from_folder(model, tmp_path, world.device, world.mesh)
        network, between = Network(model), []
        all_reduce, replicas = distributed.all_reduce, world.mesh["replicate"].get_group()

        def noted(tensor, *arguments, **settings):
            between.append(settings.get("group") is replicas)
            return all_reduce(tensor, *arguments, **settings)

        monkeypatch.setattr(distributed, "all_reduce", noted)
        rows = [([7, 8 + world.rank], [9, 10 + step, 2]) for step in range(3)]
        for number, (prompt, completion) in enumerate(rows, start=1):
            sum_over_nodes(model, is_last=number == 3)
            packed = network.pack([prompt], [completion])
            backward_through_head(network, network.hidden(packed), lambda _, logits: logits.log_softmax(-1)[:, 9].sum())
            assert sum(between) == (0 if number < 3 else model.config.num_hidden_layers + 1)
        found = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
        plain = Network(load_model(tmp_path).train())
        for rank in range(4):
            for step in range(3):
                packed = plain.pack([[7, 8 + rank]], [[9, 10 + step, 2]])
                backward_through_head(plain, plain.hidden(packed), lambda _, logits: logits.log_softmax(-1)[:, 9].sum())
        for name, parameter in plain.model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)

    assert run_on_nodes(SimpleNamespace(run=run)) == [0] * 4


def test_one_node_alone_shards_over_its_processes(tmp_path):
    """There is nothing to copy to: the same bytes as `sharding: full`."""
    spec = make_spec(METHODS["grpo"], steps=2, checkpoint_every=2)
    weights = []
    for sharding in ("full", "hybrid"):
        session = Session(tmp_path / sharding, spec, HYBRID.model_copy(update={"sharding": sharding}))
        assert run_in_processes(session) == [0, 0]
        weights.append(session.weights())
    assert weights[0] == weights[1]


def test_a_run_on_nodes_that_was_killed_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """All ranks die while the state of step 2 is written; the same command goes on."""
    spec = make_spec(METHODS["sdpo_ema"], steps=3, checkpoint_every=3)
    undisturbed = Session(tmp_path / "whole", spec, HYBRID)
    assert run_on_nodes(undisturbed) == [0] * 4
    killed = Session(tmp_path / "killed", spec, HYBRID)
    write = _HashingWriter.write_data

    def writing(self, plan, planner):
        if "step-2" in str(self._folder):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, plan, planner)

    monkeypatch.setattr(_HashingWriter, "write_data", writing)
    assert 0 not in run_on_nodes(killed)
    assert [path.name for path in (killed.folder / "state").glob("step-*")] == ["step-1"]
    monkeypatch.undo()
    assert run_on_nodes(killed) == [0] * 4
    assert killed.weights() == undisturbed.weights()
    assert without_times(killed.metrics()) == without_times(undisturbed.metrics())


def test_states_are_read_with_and_without_copies(tmp_path):
    """A state written on two nodes with copies goes on in two processes of one, and the other way round."""
    spec = make_spec(METHODS["sdpo_ema"], steps=3, checkpoint_every=3)
    full = StageRuntime(state_every_steps=1, processes=2, sharding="full")
    alone = run_alone(tmp_path / "alone", spec)
    for first, then in ((HYBRID, full), (full, HYBRID)):
        folder = tmp_path / first.sharding
        for runtime in (first, then):
            session = Session(folder, spec, runtime)
            if runtime is first:
                session.stop_requested = lambda at=folder: (at / "state/step-2").is_dir()
            size = 4 if runtime is HYBRID else 2
            expected = 1 if runtime is first else 0
            assert run_in_processes(session, processes=size, nodes=size // 2) == [expected] * size
        assert_same_training(alone, session)


def test_nodes_of_one_process_are_refused():
    def run():
        with pytest.raises(UserError, match="each node has one"):
            World.of(HYBRID.model_copy(update={"processes": 1}))

    assert run_in_processes(SimpleNamespace(run=run), processes=2, nodes=2) == [0, 0]
