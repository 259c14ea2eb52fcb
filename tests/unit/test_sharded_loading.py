"""A sharded model is read from its folder without a process that holds all of it, and is the same model."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

import training_session
from model_families import family_model
from selfdistill.estimate import dimensions_of, plan_memory, workload_of
from selfdistill.generation.loading import empty_model, load_model
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.schema.common import Lora
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.distributed import World
from selfdistill.training.network import Network
from selfdistill.training.sharded_loading import shard_from_folder
from selfdistill.training.sharding import whole
from test_estimate_measured import make_spec as measured_spec
from test_estimate_measured import sdpo
from tiny import tiny_model
from training_session import EOS, SDPO, SFT, TOKENIZER, Session, make_spec, run_in_processes, without_times

HERE = Path(__file__).parent


class FromFolder(Session):
    """A session whose model is read from a folder, each rank its part."""

    def run(self):
        training_session.tiny_model = lambda *_, **__: empty_model(self.base)
        # A copy, as the other session samples from: where weights lie in memory decides how products are rounded.
        sampler = TorchSampler(copy.deepcopy(load_model(self.base)), [EOS], shares_model=False)
        return super().run(base=self.base, sampler=sampler)


def compare(tmp_path, spec, *, tied: bool) -> None:
    runtime = StageRuntime(state_every_steps=1, processes=2, sharding="full")
    tiny_model(len(TOKENIZER), tied=tied).save_pretrained(tmp_path / "model")
    loaded = Session(tmp_path / "loaded", spec, runtime, tied=tied)
    assert run_in_processes(loaded) == [0, 0]
    read = FromFolder(tmp_path / "read", spec, runtime, tied=tied)
    read.base = tmp_path / "model"
    assert run_in_processes(read) == [0, 0]
    assert read.weights() == loaded.weights()
    assert without_times(read.metrics()) == without_times(loaded.metrics())
    name = f"checkpoints/step-{spec.steps}/config.json"
    assert json.loads((read.folder / name).read_text()) == json.loads((loaded.folder / name).read_text())


@pytest.mark.parametrize(("method", "tied"), [(SDPO, True), (SDPO, False)])
def test_training_is_the_same_to_the_byte(tmp_path, method, tied):
    compare(tmp_path, make_spec(method, steps=2, checkpoint_every=2), tied=tied)


@pytest.mark.parametrize("tied", [True, False])
def test_an_empty_model_has_the_parameters_of_the_whole_one(tmp_path, tied):
    """Tied weights are one parameter: two would be trained apart, and only one of them saved."""
    family_model("qwen3", tie_word_embeddings=tied).save_pretrained(tmp_path)
    names = [[name for name, _ in model.named_parameters()] for model in (load_model(tmp_path), empty_model(tmp_path))]
    assert names[0] == names[1] and ("lm_head.weight" in names[1]) != tied


def test_adapters_begin_with_the_same_values(tmp_path):
    compare(tmp_path, make_spec(SFT, steps=2, checkpoint_every=2, lora=Lora(rank=4)), tied=True)


@pytest.mark.parametrize("names", ["the model's", "others"])
def test_weights_are_those_of_the_folder(tmp_path, names):
    """Also in bfloat16, with a width that no two ranks share evenly, and where the library renames weights."""
    model = tiny_model(37, tied=False, layers=1).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    if names == "others":
        # As files of the base model alone have it, which the library accepts.
        path = tmp_path / "model.safetensors"
        save_file({name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}, path)
    expected = load_model(tmp_path).state_dict()

    def run():
        world = World.of(StageRuntime(processes=2))
        sharded = empty_model(tmp_path)
        shard_from_folder(sharded, tmp_path, world.device, world.mesh)
        for name, tensor in sharded.state_dict().items():
            assert whole(tensor).dtype == torch.float32
            assert torch.equal(whole(tensor), expected[name]), name

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]


#: 150 million weights.
CONFIG = {
    "vocab_size": 32768, "hidden_size": 768, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2560, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Memory of two sharded processes with a fixed teacher, by moment (measure_start.py)."""
    folders = []
    for changes in ({"hidden_size": 16, "vocab_size": 64}, {}):
        folders.append(tmp_path_factory.mktemp("model"))
        Qwen3ForCausalLM(Qwen3Config(**CONFIG | changes)).to(torch.bfloat16).save_pretrained(folders[-1])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    children = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        command = [sys.executable, str(HERE / "measure_start.py"), *map(str, folders)]
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    found = [json.loads(child.communicate(timeout=300)[0]) for child in children]
    print(found)
    return found


def test_no_process_holds_more_at_the_start_than_it_will_keep(measured):
    for process in measured:
        assert process["loading peak"] <= 1.2 * process["loaded"]
        assert process["start peak"] <= 1.2 * process["steady"]


def test_what_a_sharded_process_keeps_is_what_the_planner_says(measured):
    runtime = StageRuntime(processes=2, sharding="full")
    work = workload_of(
        measured_spec(sdpo("fixed"), 48),
        runtime,
        dimensions_of(CONFIG | {"model_type": "qwen3"}, "case"),
        max_prompt_tokens=32,
        processes=2,
        is_sharded=True,
    )
    kept = sum(part.bytes for part in plan_memory(work).parts if part.phase == "always")
    for process in measured:
        assert process["with state"] - process["libraries"] == pytest.approx(kept, rel=0.15)


def test_a_state_is_copied_once_and_the_next_uses_the_same_memory(measured):
    for process in measured:
        assert process["saving peak"] <= 1.05 * process["with state"]


def test_sharded_processes_check_their_own_part_of_the_head(tmp_path):
    """A vocabulary that no two ranks share evenly; the head is not gathered, and both ranks refuse a model together."""
    tiny_model(37, tied=False, layers=1).save_pretrained(tmp_path)

    def run():
        world = World.of(StageRuntime(processes=2))
        model = empty_model(tmp_path)
        shard_from_folder(model, tmp_path, world.device, world.mesh)
        network = Network(model)
        network.head = None
        network.check_head()
        # Only the last token of the vocabulary, which one rank alone has.
        factor = torch.ones(37).index_fill(0, torch.tensor([36]), 2.0)
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * factor)
        with pytest.raises(UserError, match="does something between"):
            network.check_head()

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]
