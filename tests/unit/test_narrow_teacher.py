"""A teacher that never changes is held in bfloat16: half the memory, and the same bits."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import training_session
from model_families import FAMILIES, family_model
from selfdistill.generation.loading import empty_model, load_model
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.schema.common import Lora
from selfdistill.schema.methods import Sdpo, Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import narrow, teacher
from selfdistill.training.distributed import World
from selfdistill.training.network import Network
from selfdistill.training.prefix import Reading
from selfdistill.training.sharding import local
from selfdistill.training.teacher import TeacherNetwork
from tiny import tiny_model
from training_session import EOS, REPROMPT, TOKENIZER, Session, make_spec, run_in_processes, without_times


def published(model):
    """The model as a folder of bfloat16 weights is loaded: float32 numbers that bfloat16 holds."""
    return model.to(torch.bfloat16).float()


def separated(model, kind: str = "fixed", dtype: torch.dtype = torch.bfloat16) -> TeacherNetwork:
    made = TeacherNetwork(Teacher(kind=kind), Network(model, compute_dtype=dtype))
    made.separate()
    return made


def held(model) -> int:
    return sum(local(parameter).nbytes for parameter in model.parameters())


@pytest.mark.parametrize("family", [*FAMILIES, "toy"])
def test_every_family_computes_the_same_bits_from_half_the_memory(family):
    student = Network(published(family_model(family)), compute_dtype=torch.bfloat16)
    made = TeacherNetwork(Teacher(kind="fixed"), student)
    made.separate()
    assert held(made.network.model) <= 0.51 * held(student.model)
    torch.manual_seed(1)
    prompts = [torch.randint(10, 60, (length,)).tolist() for length in (5, 600, 30)]
    completions = [torch.randint(10, 60, (length,)).tolist() for length in (40, 7, 25)]
    for chosen in (slice(0, 3), slice(1, 2)):
        found = []
        for network in (student, made.network):
            with torch.no_grad(), network.head() as head:
                hidden = network.hidden(network.pack(prompts[chosen], completions[chosen]))
                found.append((hidden, head(hidden)))
        for of_student, of_teacher in zip(*found, strict=True):
            assert of_student.dtype == of_teacher.dtype
            assert torch.equal(of_student, of_teacher)


def test_a_long_prompt_read_once_gives_the_same_bits():
    model = published(family_model("qwen3"))
    made = separated(model)
    prompt = (10 + torch.arange(600) % 50).tolist()
    completions = [[3, 4, 5], [6, 7]]
    shared = ([prompt] * 2, completions, Reading(is_shared=True))
    assert torch.equal(*(made.prefixes.hidden(network, *shared) for network in (made.student, made.network)))


def test_only_matrices_that_lose_nothing_are_narrow():
    model = published(tiny_model(len(TOKENIZER), tied=False))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1 + 2**-20
    types = {name: one.dtype for name, one in separated(model).network.model.named_parameters()}
    assert types["lm_head.weight"] == torch.float32
    assert types["model.embed_tokens.weight"] == torch.bfloat16
    assert all((one == torch.float32) == ("norm" in name or name == "lm_head.weight") for name, one in types.items())


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("fixed", torch.bfloat16, torch.bfloat16),
        ("trust_region", torch.bfloat16, torch.bfloat16),
        ("ema", torch.bfloat16, torch.float32),
        ("snapshot", torch.bfloat16, torch.float32),
        ("fixed", torch.float32, torch.float32),
    ],
)
def test_a_teacher_that_moves_or_computes_in_float32_is_float32(kind, dtype, expected):
    model = published(tiny_model(len(TOKENIZER)))
    assert separated(model, kind, dtype).network.model.model.embed_tokens.weight.dtype == expected


def test_a_weight_that_a_layer_of_another_kind_has_too_is_float32():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) * 3.0

    model = nn.Sequential(Scaled(8, 4), nn.Linear(4, 8, bias=False))
    model[0].weight = model[1].weight
    published(model)
    assert not narrow.narrow_weights(model)


def test_a_network_that_looks_at_the_type_of_its_weights_is_float32(caplog):
    model = published(tiny_model(len(TOKENIZER)))
    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, inputs, output: output * (1 + (module.weight.dtype == torch.float32)))
    made = separated(model)
    assert {one.dtype for one in made.network.model.parameters()} == {torch.float32}
    assert "holds them in float32" in caplog.text


class Published(Session):
    """A session whose base model has weights that bfloat16 holds; sharded, each rank reads its part of a folder."""

    def run(self):
        if self.runtime.sharding == "none":
            original = tiny_model
            training_session.tiny_model = lambda *args, **settings: published(original(*args, **settings))
            return super().run()
        training_session.tiny_model = lambda *_, **__: empty_model(self.base)
        sampler = TorchSampler(copy.deepcopy(load_model(self.base)), [EOS], shares_model=False)
        return super().run(base=self.base, sampler=sampler)


@pytest.mark.parametrize("kind", ["fixed", "trust_region"])
@pytest.mark.parametrize("processes", [1, 2])
def test_training_is_the_same_to_the_byte(tmp_path, monkeypatch, kind, processes):
    method = Sdpo(top_k=10, reprompt=REPROMPT, teacher=Teacher(kind=kind, rate=0.2))
    spec = make_spec(method, steps=3, checkpoint_every=3, precision="bfloat16")
    sharding = "full" if processes > 1 else "none"
    runtime = StageRuntime(state_every_steps=1, processes=processes, sharding=sharding)
    tiny_model(len(TOKENIZER)).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(training_session, "tiny_model", tiny_model)
    found = []
    for name in ("narrow", "wide"):
        if name == "wide":
            monkeypatch.setattr(teacher, "narrow_weights", lambda *_: {})
        session = Published(tmp_path / name, spec, runtime)
        session.base = tmp_path / "model"
        if processes > 1:
            assert run_in_processes(session) == [0, 0]
        else:
            session.run()
        found.append((session.weights(), without_times(session.metrics())))
    assert found[0] == found[1]


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_a_sharded_teacher_is_narrow_in_every_process(tmp_path, lora):
    from selfdistill.training.components import build_components

    tiny_model(len(TOKENIZER), hidden=64).to(torch.bfloat16).save_pretrained(tmp_path)
    spec = make_spec(Sdpo(reprompt=REPROMPT, teacher=Teacher(kind="fixed")), precision="bfloat16", lora=lora)

    def run():
        runtime = StageRuntime(processes=2, sharding="full")
        made = build_components(empty_model(tmp_path), TOKENIZER, spec, runtime, World.of(runtime), tmp_path)
        share = held(made.teacher.network.model) / held(made.model)
        assert share < 0.55 if lora is None else share == 1

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]


def test_processes_agree_on_whether_a_sharded_teacher_is_narrow(tmp_path, monkeypatch):
    """One computes otherwise; with weights of another type than the others it would wait in vain for their parts."""
    from selfdistill.training.components import build_components

    tiny_model(len(TOKENIZER), hidden=64).to(torch.bfloat16).save_pretrained(tmp_path)
    spec = make_spec(Sdpo(reprompt=REPROMPT, teacher=Teacher(kind="fixed")), precision="bfloat16")
    decide = TeacherNetwork.is_exact

    def run():
        runtime = StageRuntime(processes=2, sharding="full")
        world = World.of(runtime)
        monkeypatch.setattr(TeacherNetwork, "is_exact", lambda self: decide(self) and world.is_main)
        made = build_components(empty_model(tmp_path), TOKENIZER, spec, runtime, world, tmp_path)
        assert held(made.teacher.network.model) == held(made.model)

    assert run_in_processes(SimpleNamespace(run=run)) == [0, 0]
