"""The training engine: exact, resumable, and loud when there is nothing to learn."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.schema.common import Optimiser, RepromptTemplate, Sampling
from selfdistill.schema.errors import Interrupted, UserError
from selfdistill.schema.methods import Grpo, Sdpo, Sft, Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.schema.stages import OnPolicy, TrainSpec
from selfdistill.training.data import (
    Row,
    RowPlan,
    SftExample,
    TrainingFolder,
    TrainingPrompt,
    draw_indices,
    plan_micro_batches,
)
from selfdistill.training.loop import train
from selfdistill.training.methods import make_method
from selfdistill.training.network import Network, backward_through_head, completion_logprobs, pack
from selfdistill.training.optimiser import clip_gradients, learning_rate
from selfdistill.training.state import Progress, load_state, save_state
from selfdistill.training.teacher import TeacherNetwork
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
REPROMPT = RepromptTemplate(frame="{prompt}{solution} solve", solution=" solution {successful_previous_attempt}")
GRPO = Grpo()
SDPO = Sdpo(top_k=10, reprompt=REPROMPT, teacher=Teacher(kind="ema", rate=0.2))
SFT = Sft(arm="guided")


@dataclass
class Verdict:
    outcome: str
    reward: float
    extracted: str = ""


def grade(texts, golds, stop_reasons):
    """A completion is right if its length in words has the parity of the gold answer: half are, more can be."""
    assert set(stop_reasons) <= {"eos", "length"}
    right = [len(text.split()) % 2 == int(gold) % 2 for text, gold in zip(texts, golds, strict=True)]
    return [Verdict("correct" if ok else "wrong", float(ok)) for ok in right]


def make_prompts(count: int = 6) -> list[TrainingPrompt]:
    prompts = []
    for row in range(count):
        messages = [{"role": "user", "content": f"which {row} " + "so " * (row % 3)}]
        ids = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompts.append(TrainingPrompt(row, f"p{row}", "family", str(row % 2), messages, ids))
    return prompts


def make_examples(count: int = 10) -> list[SftExample]:
    return [
        SftExample(p.row_id, p.problem_id, p.prompt_ids, [*([7 + p.row_id % 5] * (1 + p.row_id % 4)), EOS])
        for p in make_prompts(count)
    ]


def make_spec(method, **changes) -> TrainSpec:
    settings = {
        "method": method,
        "seed": 0,
        "steps": 4,
        "prompts_per_step": 4,
        "prompts_per_update": 2,
        "optimiser": Optimiser(learning_rate=3e-3, warmup_steps=1),
        "on_policy": None if isinstance(method, Sft) else OnPolicy(group_size=4, sampling=Sampling(max_tokens=12)),
        "checkpoint_every": 2,
    }
    return TrainSpec(**{**settings, **changes})


@dataclass
class Session:
    """One call of train() with everything it touches."""

    folder: Path
    spec: TrainSpec
    runtime: StageRuntime = StageRuntime(state_every_steps=1)
    grade: object = staticmethod(grade)
    stop_requested: object = staticmethod(lambda: False)
    on_report: object = staticmethod(lambda line: None)
    reports: list[dict] = field(default_factory=list)
    rollouts: dict[int, list[dict]] = field(default_factory=dict)

    def run(self, **changes):
        model = tiny_model(len(TOKENIZER))
        arguments = {
            "prompts": make_prompts(),
            "examples": make_examples() if isinstance(self.spec.method, Sft) else None,
            "sampler": TorchSampler(model, [EOS]),
            "grade": self.grade,
            "folder": TrainingFolder(self.folder / "checkpoints", self.folder / "state", self.folder / "metrics.jsonl"),
            "runtime": self.runtime,
            "record_rollouts": self.rollouts.__setitem__,
            "stop_requested": self.stop_requested,
            "report": self._report,
        }
        return train(model, TOKENIZER, self.spec, **{**arguments, **changes})

    def _report(self, line):
        self.reports.append(line)
        self.on_report(line)

    def weights(self) -> bytes:
        return (self.folder / "checkpoints" / f"step-{self.spec.steps}" / "model.safetensors").read_bytes()

    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------- small parts


def test_warm_up_starts_at_zero_and_counts_steps():
    settings = Optimiser(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(settings, step, 100) for step in (1, 2, 3, 4, 5, 100)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert learning_rate(Optimiser(learning_rate=1.0, warmup_steps=0), 1, 100) == 1


def test_cosine_falls_from_the_peak_to_its_final_share():
    settings = Optimiser(learning_rate=2.0, warmup_steps=10, schedule="cosine", final_fraction=0.1)
    assert learning_rate(settings, 11, 110) == 2.0
    assert learning_rate(settings, 61, 110) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(settings, 110, 110) == pytest.approx(0.2, abs=1e-3)


def test_gradients_are_scaled_to_the_norm_and_the_norm_before_is_returned():
    tensors = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    assert clip_gradients(tensors, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(tensors[1], torch.tensor([[0.8]]), atol=1e-5, rtol=1e-5)
    assert clip_gradients(tensors, 2.0) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(tensors[0], torch.tensor([0.6]), atol=1e-5, rtol=1e-5)


def test_draws_with_replacement_depend_on_seed_and_step_alone():
    spec = make_spec(GRPO, prompts_per_step=200, prompts_per_update=200)
    assert draw_indices(spec, 3, 50) == draw_indices(spec, 3, 50)
    assert draw_indices(spec, 3, 50) != draw_indices(spec, 4, 50)
    assert draw_indices(spec, 3, 50) != draw_indices(make_spec(GRPO, seed=1, prompts_per_step=200), 3, 50)
    assert set(draw_indices(spec, 3, 5)) == {0, 1, 2, 3, 4}


def test_epochs_visit_everything_once_before_anything_twice():
    spec = make_spec(GRPO, draw="epochs", prompts_per_step=4)
    drawn = sum((draw_indices(spec, step, 10) for step in range(1, 6)), [])
    assert sorted(drawn[:10]) == list(range(10)) == sorted(drawn[10:])
    assert drawn[:10] != drawn[10:]


@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_micro_batches_hold_every_row_once_within_the_budget(budget):
    generator = np.random.default_rng(0)
    student, teacher = generator.integers(5, 60, 40), generator.integers(5, 90, 40)
    batches = plan_micro_batches(student, teacher, budget)
    assert sorted(sum(batches, [])) == list(range(40))
    for batch in batches:
        padded = max(student[batch].max(), teacher[batch].max()) * len(batch)
        assert len(batch) == 1 or padded <= budget
    if budget == 1:
        assert len(batches) == 40


def test_similar_lengths_share_a_micro_batch():
    assert plan_micro_batches([10, 5000, 11, 5100], [0, 0, 0, 0], 100_000) == [[0, 2], [1, 3]]


def test_packing_points_at_the_predictions_of_the_completion():
    packed = pack([[11, 12, 13], [21]], [[14, 15], [22, 23, 24]], torch.device("cpu"))
    assert packed.ids_BT.tolist() == [[11, 12, 13, 14], [21, 22, 23, 0]]
    assert packed.positions_N.tolist() == [2, 3, 4, 5, 6]
    assert packed.targets_N.tolist() == [14, 15, 22, 23, 24]


def test_padding_changes_no_log_probability():
    network = Network(tiny_model(len(TOKENIZER)), temperature=0.8)
    prompts, completions = [[5, 6, 7, 8, 9], [10]], [[11, 12], [13, 14, 15, 16]]
    together = completion_logprobs(network, pack(prompts, completions, network.device))
    apart = [
        completion_logprobs(network, pack([p], [c], network.device)) for p, c in zip(prompts, completions, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_gradients_through_chunks_equal_those_of_whole_logits(tied, chunk):
    prompts, completions = [[5, 6], [7, 8, 9]], [[10, 11, 12], [13, 14]]
    expected, found = tiny_model(len(TOKENIZER), tied=tied), tiny_model(len(TOKENIZER), tied=tied)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.1])
    loss = 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = expected(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        loss = loss + (logprobs * (weights[:3] if row == 0 else weights[3:])).sum()
    loss.backward()

    network = Network(found)
    network.chunk_tokens = lambda: chunk
    packed = pack(prompts, completions, network.device)

    def loss_of_chunk(part, student_logits, teacher_logits):
        logprobs = student_logits.log_softmax(-1).gather(-1, packed.targets_N[part, None]).squeeze(-1)
        return (logprobs * weights[part]).sum()

    backward_through_head(network, network.hidden(packed), None, None, loss_of_chunk)
    for (name, parameter), other in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_model_that_rescales_its_logits_is_refused():
    network = Network(tiny_model(len(TOKENIZER)))
    network.check_head()
    network.model.lm_head.register_forward_hook(
        lambda module, inputs, output: output * 2 if output.dim() == 3 else output
    )
    with pytest.raises(UserError, match="does something between"):
        network.check_head()


def test_teachers_move_as_their_kind_says():
    for kind, expected in (("fixed", 0.0), ("ema", 0.25), ("live", 1.0)):
        student = Network(tiny_model(len(TOKENIZER)))
        teacher = TeacherNetwork(Teacher(kind=kind, rate=0.25), student)
        before = student.model.lm_head.weight.detach().clone()
        with torch.no_grad():
            student.model.lm_head.weight += 1
        teacher.update()
        torch.testing.assert_close(teacher.network.model.lm_head.weight, before + expected)


def test_sdpo_shows_the_first_sibling_success_and_masks_the_rest():
    from selfdistill.generation.base import Completion
    from selfdistill.training.data import Rollout

    method = make_method(make_spec(SDPO), TOKENIZER, 256)
    prompt = make_prompts(1)[0]

    def group(*rewards):
        return [
            Rollout(prompt, sample, Completion([7], [0.0], "eos"), f"maybe {sample}", "correct", reward, "")
            for sample, reward in enumerate(rewards)
        ]

    shown = [TOKENIZER.decode(plan.teacher_prompt_ids) for plan in method.plan(group(0, 1, 0, 1))]
    assert ["solution maybe 1 solve" in text for text in shown] == [True, False, True, True]
    assert "solution maybe 3 solve" in shown[1]
    assert shown[0].startswith("<|im_start|> user which 0") and shown[0].endswith("<|im_start|> assistant")
    assert [plan.is_supervised for plan in method.plan(group(0, 1, 0))] == [True, False, True]
    assert not any(plan.is_supervised or plan.has_gradient for plan in method.plan(group(0, 0, 0)))


# ---------------------------------------------------------------------------------- loss and gradient of an update


def _gradient(rows, budget: int, method, reverse: bool = False, spec=None):
    """Loss and gradient of one mini-batch, without an optimiser step."""
    from selfdistill.training.distributed import World
    from selfdistill.training.update import Updater

    spec = spec or make_spec(method)
    student = Network(tiny_model(len(TOKENIZER)))
    instance = make_method(spec, TOKENIZER, 256)
    teacher = TeacherNetwork(instance.teacher, student) if instance.teacher else None
    updater = Updater(
        instance, student, teacher, torch.optim.SGD(student.model.parameters(), lr=0.0),
        Optimiser(learning_rate=1.0, max_grad_norm=1e9), World("cpu"), budget, 2.0, None,
    )  # fmt: skip
    found = updater.run([rows[::-1] if reverse else rows], 1, lambda: None)
    return found, [parameter.grad for parameter in student.model.parameters()]


def _rows(method) -> list[Row]:
    generator = np.random.default_rng(1)
    rows = []
    for index in range(9):
        prompt = generator.integers(5, len(TOKENIZER), 3 + index).tolist()
        completion = generator.integers(5, len(TOKENIZER), 1 + (index * 5) % 7).tolist()
        logprobs = (-3 + 0.3 * generator.standard_normal(len(completion))).tolist()
        plan = RowPlan(advantage=float(generator.standard_normal()))
        if isinstance(method, Sdpo):
            plan = RowPlan(teacher_prompt_ids=[*prompt, 8, 9]) if index % 3 else RowPlan(False, False)
        elif index % 4 == 0:
            plan = RowPlan(has_gradient=False, advantage=0.0)
        rows.append(Row(prompt, completion, plan, logprobs))
    return rows


@pytest.mark.parametrize("method", [GRPO, SDPO, Grpo(aggregation="token_mean"), SDPO.model_copy(update={"alpha": 1.0})])
def test_loss_and_gradient_do_not_depend_on_micro_batches_or_order(method):
    rows = _rows(method)
    expected, gradient = _gradient(rows, 100_000, method)
    for budget, reverse in ((1, False), (60, True), (100_000, True)):
        found, other = _gradient(rows, budget, method, reverse)
        assert found["supervised_tokens"] == expected["supervised_tokens"]
        for name in ("loss", "grad_norm", "entropy_mean", "sampler_gap"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-7)
        for a, b in zip(gradient, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_sdpo_loss_is_the_mean_over_all_rows_of_token_means():
    """Against a slow evaluation of docs/method.md 2 and 7, row by row through the model's own forward pass."""
    from selfdistill.losses import divergence

    rows = _rows(SDPO)
    model = tiny_model(len(TOKENIZER)).double()
    total = 0.0
    for row in rows:
        if not row.plan.is_supervised:
            continue
        length = len(row.completion_ids)
        with torch.no_grad():
            student = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, -length - 1 : -1]
            teacher = model(torch.tensor([row.plan.teacher_prompt_ids + row.completion_ids])).logits[
                0, -length - 1 : -1
            ]
        logprobs = student.log_softmax(-1)[torch.arange(length), torch.tensor(row.completion_ids)]
        weights = (logprobs - torch.tensor(row.sampler_logprobs)).exp().clamp(max=2.0)
        losses = divergence(student, teacher, alpha=0.5, top_k=10, add_tail=True)
        total += (losses * weights).mean().item() / len(rows)
    assert _gradient(rows, 100, SDPO)[0]["loss"] == pytest.approx(total, rel=1e-4)


def test_grpo_rows_without_advantage_are_not_forwarded_but_count():
    rows = _rows(GRPO)
    without = _gradient(rows, 1000, GRPO)[0]
    forwarded = [
        Row(r.prompt_ids, r.completion_ids, RowPlan(advantage=r.plan.advantage), r.sampler_logprobs) for r in rows
    ]
    complete = _gradient(forwarded, 1000, GRPO)[0]
    assert without["supervised_tokens"] < complete["supervised_tokens"]
    assert without["loss"] == pytest.approx(complete["loss"], rel=1e-5)
    assert without["grad_norm"] == pytest.approx(complete["grad_norm"], rel=1e-5)


def test_the_second_update_of_a_step_weighs_against_the_policy_before_the_step(tmp_path):
    """With one update the ratio is 1 everywhere, so clipping cannot matter; with four it does."""
    tight = GRPO.model_copy(update={"clip_low": 1e-6, "clip_high": 1e-6})

    def weights(method, updates, name):
        optimiser = Optimiser(learning_rate=3e-2, warmup_steps=0)
        spec = make_spec(method, steps=1, prompts_per_update=4 // updates, optimiser=optimiser)
        session = Session(tmp_path / name, spec)
        session.run()
        return session.weights()

    assert weights(GRPO, 1, "a") == weights(tight, 1, "b")
    assert weights(GRPO, 4, "c") != weights(tight, 4, "d")


# -------------------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("method", [GRPO, SDPO, SFT], ids=["grpo", "sdpo", "sft"])
def test_a_run_leaves_checkpoints_metrics_and_rollouts(tmp_path, method):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    session = Session(tmp_path, make_spec(method))
    summary = session.run()
    assert summary.checkpoint_steps == [2, 4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-4"]
    lines = session.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    common = {
        "loss", "grad_norm", "entropy_mean", "learning_rate", "supervised_tokens", "tokens_per_second",
        "completion_tokens_mean", "peak_memory_mb", "seconds_step", "seconds_updates",
    }  # fmt: skip
    on_policy = {
        "reward_mean", "truncation_rate", "unparsed_share", "timeout_share", "usable_group_share", "sampler_gap",
        "epistemic_count_mean", "epistemic_density_per_1k_tokens", "seconds_sampling", "seconds_grading",
    }  # fmt: skip
    teacher = {
        "demonstration_share", "teacher_prompt_truncated_share", "leaked_thinking_share", "teacher_gap_epistemic",
        "teacher_gap_other",
    }  # fmt: skip
    expected = common | (set() if method is SFT else on_policy) | (teacher if method is SDPO else set())
    assert expected <= set(lines[-1])
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert [line for line in session.reports if "phase" not in line] == lines
    trained = load_file(tmp_path / "checkpoints" / "step-4" / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "step-4")
    torch.testing.assert_close(loaded.model.norm.weight, trained["model.norm.weight"], atol=0, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "checkpoints" / "step-4").chat_template == TOKENIZER.chat_template
    if method is not SFT:
        assert sorted(session.rollouts) == [1, 2, 3, 4]
        assert len(session.rollouts[1]) == 16
        assert all(line["sampler_gap"] < 1e-5 for line in lines if line["supervised_tokens"])


def test_grpo_learns_what_is_rewarded(tmp_path):
    def says_maybe(texts, golds, stop_reasons):
        return [Verdict("correct" if "maybe" in text else "wrong", float("maybe" in text)) for text in texts]

    spec = make_spec(
        GRPO, steps=25, prompts_per_update=4, on_policy=OnPolicy(group_size=8, sampling=Sampling(max_tokens=12))
    )
    session = Session(tmp_path, spec, StageRuntime(state_every_steps=100), grade=says_maybe)
    session.run()
    rewards = [line["reward_mean"] for line in session.metrics()]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.15


def test_sft_learns_its_completions(tmp_path):
    session = Session(tmp_path, make_spec(SFT, steps=30, draw="epochs"), StageRuntime(state_every_steps=100))
    session.run()
    losses = [line["loss"] for line in session.metrics()]
    assert losses[-1] < 0.5 * losses[0]


def test_a_null_context_teaches_nothing(tmp_path):
    """A fixed teacher with the student's own prompt is the student: loss and gradient vanish."""
    template = RepromptTemplate.model_construct(frame="{prompt}", solution="", feedback="")
    method = SDPO.model_copy(update={"reprompt": template, "teacher": Teacher(kind="fixed")})
    session = Session(tmp_path, make_spec(method, steps=1, prompts_per_update=4))
    session.run()
    assert session.metrics()[0]["supervised_tokens"] > 0
    assert abs(session.metrics()[0]["loss"]) < 1e-6
    assert session.metrics()[0]["grad_norm"] < 1e-4


# ------------------------------------------------------------------------------------------------------ stop, resume


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights and metrics of runs that nothing interrupted."""
    results = {}
    for name, method in (("grpo", GRPO), ("sdpo", SDPO), ("sft", SFT)):
        session = Session(tmp_path_factory.mktemp(name), make_spec(method))
        session.run()
        results[name] = session
    return results


def _without_times(lines):
    return [{k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per", "peak"))} for line in lines]


@pytest.mark.parametrize("name", ["grpo", "sdpo", "sft"])
@pytest.mark.parametrize(("step", "phase"), [(1, "updates"), (3, "updates"), (2, "checkpoint"), (3, "state")])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, whole, name, step, phase):
    """The child kills itself (SIGKILL) in the middle of a phase; the same call then goes on to the end."""
    session = Session(tmp_path, whole[name].spec, StageRuntime(state_every_steps=2 if phase == "updates" else 1))

    def die():
        session.on_report = lambda line: (
            os.kill(os.getpid(), signal.SIGKILL) if line.get("phase") == phase and line["step"] == step else None
        )
        session.run()

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    session.run()
    assert session.weights() == whole[name].weights()
    assert _without_times(session.metrics()) == _without_times(whole[name].metrics())


@pytest.mark.parametrize("name", ["grpo", "sdpo", "sft"])
@pytest.mark.parametrize("stop_at", ["grading", "updates"])
def test_a_stopped_run_ends_in_the_same_bytes(tmp_path, whole, name, stop_at):
    """Stopped after sampling its rollouts are kept and used; stopped after the updates nothing is left to do."""
    if name == "sft" and stop_at == "grading":
        pytest.skip("sft samples nothing")
    session = Session(tmp_path, whole[name].spec, StageRuntime(state_every_steps=100))
    session.stop_requested = lambda: session.reports[-1].get("phase", "end") in (stop_at, "end", "checkpoint")
    stops = 0
    while stops < 20:
        try:
            summary = session.run()
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert summary.resumed_from == 3
    assert session.weights() == whole[name].weights()
    assert _without_times(session.metrics()) == _without_times(whole[name].metrics())
    if stop_at == "grading":
        sampled = [line["step"] for line in session.reports if line.get("phase") == "sampling"]
        assert sampled == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, whole, damage, caplog):
    session = Session(tmp_path, whole["sdpo"].spec)
    session.stop_requested = lambda: session.reports[-1]["step"] == 3 and "loss" in session.reports[-1]
    with pytest.raises(Interrupted):
        session.run()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-2", "step-3"]
    file = tmp_path / "state" / "step-3" / "tensors.pt"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    session.stop_requested = lambda: False
    assert session.run().resumed_from == 2
    assert "falling back" in caplog.text
    assert session.weights() == whole["sdpo"].weights()


def test_states_that_are_all_damaged_are_an_error(tmp_path):
    save_state(tmp_path, Progress(step=1), {"x": torch.ones(2)})
    (tmp_path / "step-1" / "progress.json").write_text("{}")
    with pytest.raises(UserError, match="no intact resume state"):
        load_state(tmp_path, torch.device("cpu"))


def test_no_state_means_a_fresh_start(tmp_path):
    assert load_state(tmp_path, torch.device("cpu")) is None


# -------------------------------------------------------------------------------------------------- nothing silent


@pytest.mark.parametrize("method", [GRPO, SDPO], ids=["grpo", "sdpo"])
def test_training_without_signal_stops_with_the_reason(tmp_path, method):
    def all_wrong(texts, golds, stop_reasons):
        return [Verdict("wrong", 0.0) for _ in texts]

    session = Session(tmp_path, make_spec(method, steps=9, max_steps_without_signal=3), grade=all_wrong)
    with pytest.raises(UserError, match="step 3: nothing to learn from in the last 3 steps"):
        session.run()
    assert [line["supervised_tokens"] for line in session.metrics()] == [0, 0, 0]


def test_divergence_names_the_step(tmp_path):
    spec = make_spec(SFT, steps=50, optimiser=Optimiser(learning_rate=1e30, warmup_steps=0))
    with pytest.raises(UserError, match=r"step \d+: the (loss|gradient norm) is (nan|inf)"):
        Session(tmp_path, spec).run()


def test_too_many_cut_demonstrations_stop_training(tmp_path):
    method = SDPO.model_copy(update={"max_reprompt_tokens": 12, "max_truncated_share": 0.1})
    with pytest.raises(UserError, match="max_truncated_share"):
        Session(tmp_path, make_spec(method)).run()


def test_empty_inputs_are_refused(tmp_path):
    with pytest.raises(UserError, match="no prompts"):
        Session(tmp_path, make_spec(GRPO)).run(prompts=[])
    with pytest.raises(UserError, match="no completions"):
        Session(tmp_path, make_spec(SFT)).run(examples=[])
