"""Options that the paper does not use, or names only: KL, sampled token, trust region, adapters, unpadded batches."""

from __future__ import annotations

import gzip
import json
import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.losses import divergence, kl_penalty, sampled_token_loss
from selfdistill.schema.common import Lora, Optimiser, Sampling
from selfdistill.schema.errors import Interrupted, UserError
from selfdistill.schema.methods import Grpo, Sdpo, Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.training import TrainingEvaluation
from selfdistill.training import optimiser as optim
from selfdistill.training import weights
from selfdistill.training.data import Row, RowPlan, mixed
from selfdistill.training.network import Network, pack
from selfdistill.training.prefix import Reading
from selfdistill.training.teacher import TeacherNetwork
from selfdistill.training.weights import add_adapters, plain_weights
from small_specs import small
from tiny import tiny_model
from training_session import (
    GRPO,
    REPROMPT,
    SDPO,
    SFT,
    TOKENIZER,
    Session,
    Verdict,
    make_spec,
    run_in_processes,
    without_times,
)

PROMPTS, COMPLETIONS = [[5, 6], [7, 8, 9, 10]], [[11, 12, 13], [14]]


def test_the_kl_penalty_gives_hand_made_numbers_and_equals_trl():
    policy, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.0, -1.0, -1.5])
    found = kl_penalty(policy, reference)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.718282, 0.367879]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found, torch.exp(reference - policy) - (reference - policy) - 1)


def test_the_kl_penalty_starts_at_zero_and_holds_the_policy_back(tmp_path):
    optimiser = Optimiser(learning_rate=1e-2, warmup_steps=0)

    def distance(coefficient: float) -> tuple[float, list[float]]:
        spec = make_spec(Grpo(kl_coefficient=coefficient), steps=3, prompts_per_update=4, optimiser=optimiser)
        session = Session(tmp_path / str(coefficient), spec)
        session.run()
        kls = [line["reference_kl"] for line in session.metrics()]
        return kls[-1], kls

    free, first = distance(1e-9)
    held, _ = distance(10.0)
    assert first[0] == pytest.approx(0, abs=1e-9)
    assert 0 < held < free


def test_a_kl_penalty_alone_is_nothing_to_learn_from(tmp_path):
    """Every row has a gradient, but with equal rewards no group is usable."""
    session = Session(tmp_path, make_spec(Grpo(kl_coefficient=0.1), max_steps_without_signal=2))
    session.grade = lambda texts, prompts, stops: [Verdict("wrong", 0.0) for _ in texts]
    with pytest.raises(UserError, match="step 2: no learning signal in the last 2 steps"):
        session.run()
    assert [line["usable_group_share"] for line in session.metrics()] == [0.0, 0.0]


def test_without_a_kl_penalty_there_is_no_reference(tmp_path):
    session = Session(tmp_path, make_spec(GRPO))
    session.run()
    assert "reference_kl" not in session.metrics()[0] and "demonstration_share" not in session.metrics()[0]


def test_the_sampled_token_form_has_the_gradient_of_the_reverse_kl_in_expectation():
    """Summed over every token y with its probability S(y), which the gradient must not see."""
    logits = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    expected = (logprobs.detach().exp() * sampled_token_loss(logprobs, teacher)).sum()
    (found,) = torch.autograd.grad(expected, logits, retain_graph=True)
    reverse = divergence(logits[None], teacher[None], alpha=1.0, top_k=None, add_tail=True).sum()
    (wanted,) = torch.autograd.grad(reverse, logits)
    torch.testing.assert_close(found, wanted)


def test_the_sampled_token_form_needs_the_reverse_kl():
    with pytest.raises(ValidationError, match="set alpha to 1"):
        Sdpo(reprompt=REPROMPT, sampled_token=True)
    assert Sdpo(reprompt=REPROMPT, sampled_token=True, alpha=1.0).sampled_token


def test_the_sampled_token_form_trains(tmp_path):
    session = Session(tmp_path, make_spec(Sdpo(reprompt=REPROMPT, sampled_token=True, alpha=1.0)))
    session.run()
    assert all(line["grad_norm"] > 0 for line in session.metrics())


def test_later_options_leave_older_keys_alone():
    for method in (GRPO, SDPO):
        assert not {"kl_coefficient", "sampled_token"} & method.identity().keys()
    assert "lora" not in make_spec(GRPO).identity()
    assert make_spec(GRPO, lora=Lora()).identity()["lora"]["rank"] == 16


def test_a_trust_region_teacher_mixes_the_logits_of_the_first_and_the_present_policy():
    first, now = tiny_model(len(TOKENIZER)), tiny_model(len(TOKENIZER), seed=1)
    student = Network(tiny_model(len(TOKENIZER)))
    teacher = TeacherNetwork(Teacher(kind="trust_region", rate=0.25), student)
    teacher.separate()
    student.model.load_state_dict(now.state_dict())
    packed = pack(PROMPTS, COMPLETIONS, student.device)
    with teacher.logits(PROMPTS, COMPLETIONS, Reading()) as logits:
        found = logits(slice(1, 4))
    rows = [0, 0, 1]
    places = [2, 3, 3]
    with torch.no_grad():
        wanted = 0.75 * first(packed.ids_BT).logits + 0.25 * now(packed.ids_BT).logits
    torch.testing.assert_close(found, wanted[rows, places], atol=1e-5, rtol=1e-5)
    assert not found.requires_grad and torch.is_grad_enabled()


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained():
    model = tiny_model(len(TOKENIZER))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7]])
    expected = model(ids).logits
    add_adapters(model, Lora(rank=2))
    torch.testing.assert_close(model(ids).logits, expected)
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    found = dict(plain_weights(model))
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_a_checkpoint_of_adapters_is_a_plain_model_that_computes_the_same(tmp_path):
    spec = make_spec(SFT, lora=Lora(rank=2, target_modules=["q_proj", "down_proj"]))
    session = Session(tmp_path, spec)
    session.run()
    base, plain = (
        tiny_model(len(TOKENIZER)).state_dict(),
        load_file(tmp_path / f"checkpoints/step-{spec.steps}/model.safetensors"),
    )
    changed = {name for name, tensor in plain.items() if not torch.equal(tensor, base[name])}
    assert changed and all("q_proj" in name or "down_proj" in name for name in changed)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoints/step-{spec.steps}")
    assert type(model).__name__ == "Qwen3ForCausalLM"


def test_parameters_without_a_part_on_this_rank_are_not_taken_for_tied_ones(monkeypatch):
    """Of a vector shorter than the ranks some hold nothing, at one address; each must take part in every gathering."""
    gathered = []
    monkeypatch.setattr(weights, "whole", lambda tensor: gathered.append(tensor) or tensor)
    model = tiny_model(len(TOKENIZER))
    norms = [module for name, module in model.named_modules() if name.endswith("q_norm")]
    for norm in norms:
        norm.weight = torch.nn.Parameter(torch.empty(0))
    found = dict(plain_weights(model))
    assert len(norms) > 1 and found.keys() == model.state_dict().keys()
    assert len(gathered) == len(list(model.named_parameters())), "tied ones once"


def test_merged_weights_give_the_logits_of_the_adapted_model():
    model = tiny_model(len(TOKENIZER))
    add_adapters(model, Lora(rank=2, alpha=3.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    plain = tiny_model(len(TOKENIZER), seed=5)
    plain.load_state_dict(dict(plain_weights(model)))
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_teachers_of_adapted_models_share_what_is_frozen():
    student = Network(tiny_model(len(TOKENIZER)))
    add_adapters(student.model, Lora(rank=2))
    teacher = TeacherNetwork(Teacher(kind="ema", rate=0.5), student)
    teacher.separate()
    own, theirs = dict(teacher.network.model.named_parameters()), dict(student.model.named_parameters())
    for name, parameter in theirs.items():
        assert (own[name].data_ptr() == parameter.data_ptr()) == (not parameter.requires_grad), name
    assert teacher.state().keys() == {name for name in theirs if "lora_" in name}


def test_a_stopped_run_with_adapters_ends_in_the_same_bytes(tmp_path):
    spec = make_spec(SDPO, lora=Lora(rank=2))
    whole = Session(tmp_path / "whole", spec)
    whole.run()
    stopped = Session(tmp_path / "stopped", spec)
    stopped.stop_requested = lambda: stopped.reports[-1].get("step") == 3 and "loss" in stopped.reports[-1]
    with pytest.raises(Interrupted):
        stopped.run()
    stopped.stop_requested = lambda: False
    assert stopped.run().resumed_from == 3
    assert stopped.weights() == whole.weights()
    assert without_times(stopped.metrics()) == without_times(whole.metrics())


def test_layers_that_the_model_lacks_are_named():
    with pytest.raises(UserError, match=r"lora.target_modules.*no layer \['query'\].*q_proj"):
        add_adapters(tiny_model(len(TOKENIZER)), Lora(target_modules=["query"]))


@pytest.mark.parametrize("method", [GRPO, SDPO, SFT], ids=["grpo", "sdpo", "sft"])
def test_rows_laid_end_to_end_train_what_padded_rows_do(tmp_path, method, monkeypatch):
    """The plain attention kernel keeps them apart too, by a mask; on a GPU flash attention does it by lengths."""
    sessions = []
    for unpadded in (False, True):
        init = Network.__init__

        def with_layout(self, *args, unpadded=unpadded, init=init, **options):
            init(self, *args, **options)
            self.unpadded = unpadded

        with monkeypatch.context() as patch:
            patch.setattr(Network, "__init__", with_layout)
            runtime = StageRuntime(state_every_steps=10, micro_batch_tokens=90)
            sessions.append(Session(tmp_path / str(unpadded), make_spec(method, steps=3), runtime))
            sessions[-1].run()
    for padded, unpadded in zip(*(without_times(session.metrics()) for session in sessions), strict=True):
        assert padded == pytest.approx(unpadded, rel=1e-3, abs=1e-6)


def test_unpadded_rows_start_at_position_zero_and_hold_no_padding():
    packed = pack([[11, 12, 13], [21]], [[14, 15], [22, 23, 24]], torch.device("cpu"), unpadded=True)
    assert packed.ids_BT.tolist() == [[11, 12, 13, 14, 21, 22, 23]]
    assert packed.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert packed.positions_N.tolist() == [2, 3, 4, 5, 6]
    assert packed.targets_N.tolist() == [14, 15, 22, 23, 24]


EVALUATION = small(TrainingEvaluation, every_steps=3, samples=2, sampling=Sampling(max_tokens=10), limit=3)


@pytest.mark.parametrize("method", [GRPO, SFT], ids=["grpo", "sft"])
def test_evaluation_while_training_reports_and_changes_nothing_else(tmp_path, method):
    plain, looked = Session(tmp_path / "plain", make_spec(method)), None
    plain.run()
    looked = Session(tmp_path / "looked", make_spec(method, evaluation=EVALUATION))
    looked.run()
    assert looked.weights() == plain.weights()
    due = [line["step"] for line in looked.metrics() if "evaluation_avg_at_k" in line]
    assert due == [3, 4]
    line = looked.metrics()[2]
    assert line["evaluation_avg_at_k"] * 6 == pytest.approx(round(line["evaluation_avg_at_k"] * 6))
    assert 0 < line["evaluation_mean_length"] <= 10
    rest = [{k: v for k, v in line.items() if not k.startswith("evaluation")} for line in looked.metrics()]
    assert without_times(rest) == without_times(plain.metrics())


def test_a_resumed_training_on_examples_leaves_its_sampler_alone_until_the_evaluation(tmp_path, monkeypatch):
    """An engine that has new weights is awake until it samples, so its memory would be missing in the updates."""
    session = Session(tmp_path, make_spec(SFT, steps=4, evaluation=EVALUATION))
    session.stop_requested = lambda: (tmp_path / "state/step-1").is_dir()
    with pytest.raises(Interrupted):
        session.run()
    session.stop_requested = lambda: False
    session.reports.clear()
    phases = []
    monkeypatch.setattr(TorchSampler, "update_weights", lambda *_: phases.append(session.reports[-1].get("phase")))
    session.run()
    assert phases == ["weights", "weights"]


def test_two_processes_share_the_evaluation(tmp_path):
    spec = make_spec(GRPO, steps=3, checkpoint_every=3, evaluation=EVALUATION)
    one = Session(tmp_path / "one", spec)
    one.run()
    two = Session(tmp_path / "two", spec, StageRuntime(processes=2, sharding="full"))
    assert run_in_processes(two) == [0, 0]
    names = [name for name in one.metrics()[-1] if name.startswith("evaluation")]
    assert len(names) == 7
    for name in names:
        assert two.metrics()[-1][name] == pytest.approx(one.metrics()[-1][name])


def test_a_step_can_be_profiled(tmp_path):
    session = Session(tmp_path, make_spec(GRPO, steps=2), StageRuntime(profile_step=2))
    session.run()
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step-2.json.gz"]
    trace = json.loads(gzip.decompress((tmp_path / "profile/step-2.json.gz").read_bytes()))
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.parametrize("method", [GRPO, SDPO], ids=["grpo", "sdpo"])
def test_bfloat16_computes_nearly_what_float32_does(tmp_path, method):
    """Weights and sums stay float32; the checkpoint is bfloat16."""
    found = {}
    for precision in ("float32", "bfloat16"):
        session = Session(tmp_path / precision, make_spec(method, steps=1, checkpoint_every=1, precision=precision))
        session.run()
        found[precision] = session.metrics()[0]
    for name in ("loss", "grad_norm", "entropy_mean"):
        assert found["bfloat16"][name] == pytest.approx(found["float32"][name], rel=0.1, abs=5e-3)
    folder = tmp_path / "bfloat16/checkpoints/step-1"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["gpu1", "gpu4", "gpu8", "two_nodes"])
def test_shipped_accelerate_files_are_valid(project_root, name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(project_root / f"config/accelerate/{name}.yaml"))
    processes = {"gpu1": 1, "gpu4": 4, "gpu8": 8, "two_nodes": 16}
    assert config.num_processes == processes[name]


def test_mini_batches_of_whole_groups_or_of_all_rollouts_of_the_step(tmp_path):
    """Mixed: the rows of an update come from any group, the same ones in every attempt."""
    spec = make_spec(GRPO, mini_batches="mixed")
    rows = [Row([prompt], [sample], RowPlan()) for prompt in range(4) for sample in range(4)]
    shuffled = mixed(spec, 3, rows)
    assert shuffled != rows and sorted(shuffled, key=rows.index) == rows
    assert mixed(spec, 3, rows) == shuffled != mixed(spec, 4, rows)
    assert len({row.prompt_ids[0] for row in shuffled[:8]}) > 2
    ended = Session(tmp_path / "mixed", spec)
    ended.run()
    kept = Session(tmp_path / "groups", make_spec(GRPO))
    kept.run()
    assert ended.weights() != kept.weights()
    assert "mini_batches" in spec.identity() and "mini_batches" not in make_spec(GRPO).identity()


def test_an_update_whose_gradient_is_not_finite_is_left_out_where_the_recipe_says_so(tmp_path, monkeypatch):
    """The second update of the first step: weights, teacher and sums stay as they were."""
    calls = iter([1.0, float("nan")])
    clip = optim.clip_gradients
    monkeypatch.setattr(optim, "clip_gradients", lambda gradients, limit: clip(gradients, limit) * next(calls, 1.0))
    spec = make_spec(SDPO, steps=2, bad_update="skip", checkpoint_every=2)
    session = Session(tmp_path, spec)
    session.run()
    first, second = session.metrics()
    assert (first["skipped_updates"], second["skipped_updates"]) == (1, 0)
    assert math.isfinite(first["loss"]) and math.isfinite(first["grad_norm"])
    calls = iter([1.0, float("nan")])
    with pytest.raises(UserError, match="step 1: the gradient norm is nan"):
        Session(tmp_path / "error", make_spec(SDPO, steps=2)).run()


def test_a_run_whose_updates_are_all_left_out_has_no_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "clip_gradients", lambda gradients, limit: float("nan"))
    with pytest.raises(UserError, match="step 2: no learning signal in the last 2 steps"):
        Session(tmp_path, make_spec(SFT, steps=2, bad_update="skip")).run()
