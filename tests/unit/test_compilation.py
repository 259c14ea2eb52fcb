"""Compiled losses and layers: what the plain ones compute, without graph breaks, one version for all lengths.

`aot_eager` traces, splits into forward and backward and guards as the real compiler does, and generates no code; the
tests marked slow generate it, for the CPU.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.losses import compile_losses, compiled, divergence, entropy, grpo_token_loss, token_logprobs
from selfdistill.schema.common import Lora, Sampling
from selfdistill.schema.methods import Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import compilation
from selfdistill.training.components import build_components
from selfdistill.training.distributed import World
from selfdistill.training.network import Network, backward_through_head
from selfdistill.training.prefix import LEAST_TOKENS, hidden_after_prompt, read_prompt
from selfdistill.training.sharding import shard_model, whole
from selfdistill.training.weights import add_adapters
from selfdistill.training.windows import attend_in_windows
from tiny import tiny_model
from training_session import GRPO, SDPO, TOKENIZER, Session, make_spec, run_in_processes, without_times

CPU = torch.device("cpu")
VOCABULARY = 300
SUPPORTS = [(20, True), (20, False), (None, True)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing compiled before or after; no code is generated."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    compiled._compiled.cache_clear()
    counters.clear()
    yield
    compile_losses("cpu", None)
    torch._dynamo.reset()


def graphs() -> int:
    """Number of compiled graphs; none of them may have a break."""
    assert not counters["graph_break"], dict(counters["graph_break"])
    return counters["stats"]["unique_graphs"]


def results(function, tokens: int) -> list[torch.Tensor]:
    """Losses of some tokens and the gradient of the student's logits, if there is one."""
    generator = torch.Generator().manual_seed(tokens)
    student, teacher = (2 * torch.randn(tokens, VOCABULARY, generator=generator) for _ in range(2))
    targets = torch.randint(VOCABULARY, (tokens,), generator=generator)
    found = function(student.requires_grad_(), teacher, targets)
    return [found.detach(), *(torch.autograd.grad(found.sum(), student) if found.requires_grad else ())]


def lines_of(caplog) -> list[str]:
    """What this project wrote into the log."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("selfdistill")]


def distil(alpha, top_k, add_tail):
    return lambda student, teacher, _: divergence(student, teacher, alpha=alpha, top_k=top_k, add_tail=add_tail)


def grpo(student, _, targets):
    logprobs = token_logprobs(student, targets)
    advantages = torch.linspace(-1, 1, len(targets))
    return grpo_token_loss(logprobs, logprobs.detach() - 0.1, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0)


LOSSES = {
    **{f"alpha {a}, top {k}, tail {t}": distil(a, k, t) for a in (0.0, 0.5, 1.0) for k, t in SUPPORTS},
    "GRPO": grpo,
    "entropy": lambda student, *_: entropy(student),
}


def assert_same_losses(function, backend: str) -> None:
    counts = (6, 9, 1, 30)
    expected = [results(function, count) for count in counts]
    compile_losses("cpu", backend)
    found = [results(function, count) for count in counts]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
    assert graphs() == 1


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_loss_is_one_graph_for_all_numbers_of_tokens(name):
    assert_same_losses(LOSSES[name], "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_generated_code_computes_the_same_losses(name):
    assert_same_losses(LOSSES[name], "inductor")


def test_losses_are_compiled_only_where_that_is_switched_on(monkeypatch):
    monkeypatch.setattr(compiled, "_compiled", lambda *_: pytest.fail("compiled"))
    compile_losses("cuda", "aot_eager")
    results(grpo, 5)
    compile_losses("cuda", None)


def test_a_loss_that_does_not_compile_goes_on_uncompiled(monkeypatch, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    expected = results(grpo, 5)
    monkeypatch.setitem(compiled._BACKENDS, "cpu", broken)
    assert torch.equal(results(grpo, 5)[1], expected[1])
    (line,) = lines_of(caplog)
    assert "no longer compiled" in line and "no such instruction" in line
    assert "cpu" not in compiled._BACKENDS


def test_more_versions_of_a_loss_than_allowed_go_on_uncompiled(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "_MAX_VERSIONS", 1)
    kinds = [distil(alpha, 20, True) for alpha in (0.5, 1.0)]
    expected = [results(kind, 5) for kind in kinds]
    compile_losses("cpu", "aot_eager")
    for kind, (_, gradient) in zip(kinds, expected, strict=True):
        torch.testing.assert_close(results(kind, 5)[1], gradient)
    (line,) = lines_of(caplog)
    assert "no longer compiled" in line


def sequences(lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    draw = [torch.randint(5, 27, (3 + length,), generator=generator).tolist() for length in lengths]
    return [ids[:3] for ids in draw], [ids[3:] for ids in draw]


def gradients(network: Network, lengths) -> list[torch.Tensor]:
    """Hidden states of the completions, and gradients."""
    network.model.zero_grad()
    hidden = network.hidden(network.pack(*sequences(lengths)))
    backward_through_head(network, hidden, lambda part, logits: logits.log_softmax(-1)[:, 7].sum())
    trained = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
    return [hidden.detach(), *(parameter.grad.clone() for parameter in trained)]


def model_of(kind: str):
    """Two layers, with gradient checkpointing as on a GPU."""
    if kind == "windows":
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=48, use_sliding_window=True, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], pad_token_id=0,
        )  # fmt: skip
        model = Qwen3ForCausalLM(config)
        attend_in_windows(model)
    else:
        model = tiny_model(30, tied=False)
    if kind == "adapters":
        add_adapters(model, Lora(rank=4))
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def assert_same_layers(kind: str, most: int) -> None:
    """Rows of several lengths; the first lengths compile at most so many graphs, the others none."""
    model = model_of(kind)
    network, plain = Network(model, compiles=True), Network(copy.deepcopy(model))
    for number, lengths in enumerate([(20, 5, 9), (31, 4), (12, 40, 3, 8)]):
        torch.testing.assert_close(gradients(network, lengths), gradients(plain, lengths), rtol=1e-4, atol=1e-5)
        if number == 0:
            first = graphs()
    assert 0 < first == graphs() <= most


@pytest.mark.parametrize(("kind", "most"), [("plain", 1), ("adapters", 1), ("windows", 2)])
@pytest.mark.slow
def test_compiled_layers_share_one_version_for_all_lengths(kind, most):
    """Those with a window have one of their own. Recomputing a layer uses what its forward pass used."""
    assert_same_layers(kind, most)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "most"), [("plain", 1), ("windows", 2)])
def test_generated_code_computes_the_same_layers(monkeypatch, kind, most):
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    assert_same_layers(kind, most)


@pytest.mark.slow
def test_passes_with_a_cache_compile_nothing(monkeypatch):
    """The sampler, on the very modules that training compiled, and a teacher's prompt that is read once."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    model = tiny_model(len(TOKENIZER))
    prompts, seeds, sampling = [[5, 6, 7], [8] * 5], [[1, 2], [3, 4]], Sampling(max_tokens=12)
    expected = TorchSampler(model, [2]).generate(prompts, seeds, sampling)
    prompt, completions = [5 + place % 20 for place in range(LEAST_TOKENS)], [[7, 8, 9], [10] * 5]
    states = hidden_after_prompt(Network(model), prompt, completions, read_prompt(Network(model), prompt))
    network = Network(model, compiles=True)
    assert TorchSampler(model, [2]).generate(prompts, seeds, sampling) == expected
    assert torch.equal(hidden_after_prompt(network, prompt, completions, read_prompt(network, prompt)), states)
    assert graphs() == 0
    network.hidden(network.pack(prompts, completions))
    assert graphs() == 1


@pytest.mark.slow
def test_sharded_layers_share_their_versions(tmp_path, monkeypatch):
    """Weights are gathered outside of the compiled code. Recomputed layers have a version of their own: there FSDP does
    not wrap the inputs. What is saved for the backward pass is decided as by the real compiler.
    """
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager_decomp_partition")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = tiny_model(30, tied=False, layers=4).train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        plain, network = Network(copy.deepcopy(model)), Network(model, compiles=True)
        shard_model(model, init_device_mesh("cpu", (1,)))
        for lengths in [(20, 5, 9), (31, 4)]:
            found = [whole(tensor) for tensor in gradients(network, lengths)]
            torch.testing.assert_close(found, gradients(plain, lengths), rtol=1e-4, atol=1e-5)
            assert graphs() == 2
    finally:
        torch.distributed.destroy_process_group()


def components(method, **runtime):
    spec = make_spec(method)
    return build_components(tiny_model(len(TOKENIZER)), TOKENIZER, spec, StageRuntime(**runtime), World("cpu"))


def is_compiled(model) -> bool:
    return all(layer._compiled_call_impl is not None for layer in model.base_model.layers)


@pytest.mark.slow
def test_a_training_compiles_policy_and_teacher_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    made = components(SDPO.model_copy(update={"teacher": Teacher()}), compile=True)
    made.teacher.separate()
    assert is_compiled(made.model) and is_compiled(made.teacher.network.model)
    assert made.teacher.network.model is not made.model and compiled._BACKENDS == {"cpu": "eager"}
    assert not is_compiled(components(SDPO).model)
    assert compiled._BACKENDS == {}


def test_it_is_chosen_on_gpus_unless_said_otherwise():
    assert not StageRuntime().compiles and StageRuntime(device="cuda").compiles
    assert StageRuntime(compile=True).compiles and not StageRuntime(device="cuda", compile=False).compiles


def broken_backend(graph, inputs):
    raise RuntimeError("no Triton here")


def wrong_backend(graph, inputs):
    return lambda *values: [None if x is None else x * 1.05 for x in graph(*values)]


def backend_without_topk(graph, inputs):
    if any("topk" in str(node.target) for node in graph.graph.nodes):
        raise RuntimeError("no such kernel")
    return graph


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (broken_backend, "no Triton here"),
        (backend_without_topk, "no such kernel"),
        (wrong_backend, "differ by"),
    ],
)
def test_a_compiler_that_does_not_work_leaves_the_training_uncompiled_and_says_so(monkeypatch, caplog, backend, reason):
    monkeypatch.setattr(compilation, "BACKEND", backend)
    made = components(GRPO, compile=True)
    assert not is_compiled(made.model) and compiled._BACKENDS == {}
    (line,) = lines_of(caplog)
    assert "nothing is compiled" in line and reason in line and "\n" not in line


def test_all_processes_compile_or_none(monkeypatch, caplog):
    monkeypatch.setattr(compilation, "fault", lambda *_: None)
    world = World("cpu")
    monkeypatch.setattr(world, "any", lambda flag: True)
    assert not compilation.choose_compilation(StageRuntime(compile=True), world)
    assert compiled._BACKENDS == {} and not lines_of(caplog)


def test_the_trial_draws_nothing_from_the_generator_of_training(monkeypatch):
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert compilation.fault(CPU) is None
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("problem", [None, "no Triton here"])
def test_doctor_says_what_is_compiled(monkeypatch, problem):
    from selfdistill.cli import checks

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (line,) = checks.compiler()
    assert line.state == "ok" and "no GPU here" in line.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compilation, "fault", lambda device: problem)
    (line,) = checks.compiler()
    assert line.state == ("ok" if problem is None else "warn")
    assert problem is None or problem in line.text


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_trial_of_a_sharded_training_is_sharded(precision):
    def work():
        world = World("cpu", sharding="full")
        assert compilation.fault(CPU, precision, world) is None
        assert graphs() > 0
        assert compilation.choose_compilation(StageRuntime(compile=True), world, precision)

    assert run_in_processes(SimpleNamespace(run=work)) == [0, 0]


def test_a_compiler_that_fails_in_sharded_layers_alone_leaves_the_training_uncompiled(monkeypatch, caplog):
    def refuse(*_):
        raise torch.utils.checkpoint.CheckpointError("a different number of tensors was saved")

    def work():
        monkeypatch.setattr(compilation, "shard_model", refuse)
        assert compilation.fault(CPU) is None
        assert not compilation.choose_compilation(StageRuntime(compile=True), World("cpu", sharding="full"))
        (line,) = lines_of(caplog)
        assert "nothing is compiled" in line and "a different number of tensors" in line

    assert run_in_processes(SimpleNamespace(run=work)) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "precision"), [("none", "float32"), ("full", "float32"), ("full", "bfloat16")])
def test_two_processes_with_compiled_layers_train_as_without(tmp_path, sharding, precision):
    method = SDPO.model_copy(update={"teacher": Teacher()})
    spec = make_spec(method, steps=2, checkpoint_every=2, precision=precision)
    lines = []
    for compiles in (False, True):
        runtime = StageRuntime(state_every_steps=9, processes=2, sharding=sharding, compile=compiles)

        def check(line, compiles=compiles):
            """In each process, step by step."""
            assert (graphs() > 0) == compiles

        session = Session(tmp_path / str(compiles), spec, runtime, on_report=check)
        assert run_in_processes(session) == [0, 0]
        lines.append(without_times(session.metrics()))
    for plain, own in zip(*lines, strict=True):
        assert own == pytest.approx(plain, rel=1e-3, abs=1e-6)
