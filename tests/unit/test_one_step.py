"""examples/one_step.py, the readable twin, computes what the training engine computes."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

from selfdistill.generation.base import Completion
from selfdistill.rollouts import Prompt, Rollout
from selfdistill.schema.common import Optimiser, RepromptTemplate, Sampling
from selfdistill.schema.methods import Grpo, Sdpo
from selfdistill.schema.training import OnPolicy
from selfdistill.toy.tokenizer import build_tokenizer
from selfdistill.training import optimiser as optim
from selfdistill.training.data import CONTEXT, Row
from selfdistill.training.distributed import World
from selfdistill.training.methods import Tokens, make_method
from selfdistill.training.network import Network
from selfdistill.training.teacher import ShownLogits, TeacherNetwork
from selfdistill.training.update import Updater
from small_specs import small
from training_session import make_spec

EXAMPLE = Path(__file__).parents[2] / "examples/one_step.py"
TOKENIZER = build_tokenizer(256)
REPROMPT = RepromptTemplate(
    frame="{prompt}{solution} now solve", solution=" correct solution : {successful_previous_attempt}"
)


def _load_example():
    spec = importlib.util.spec_from_file_location("one_step", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_step"] = module
    spec.loader.exec_module(module)
    return module


one_step = _load_example()
METHODS = {
    "grpo": (Grpo(), one_step.grpo_step),
    "sdpo": (
        Sdpo(top_k=one_step.TOP_K, alpha=one_step.ALPHA, reprompt=REPROMPT),
        lambda *arguments: one_step.sdpo_step(*arguments, TOKENIZER),
    ),
}


@pytest.fixture(scope="module")
def step():
    """A policy that guesses, and its rollouts, by the example's own code.

    The sampler's log-probs get noise: without it the correction and its cap would be 1 everywhere.
    """
    torch.manual_seed(0)
    rng = random.Random(0)
    base = one_step.guessing_model(TOKENIZER, rng, steps=100)
    problems = [one_step.draw("id", rng) for _ in range(one_step.PROMPTS_PER_STEP)]
    groups = [[one_step.sample(base, TOKENIZER, problem) for _ in range(one_step.GROUP_SIZE)] for problem in problems]
    noisy = [[_with_noise(rollout) for rollout in group] for group in groups]
    rewards = [rollout.reward for group in groups for rollout in group]
    assert 4 <= sum(rewards) <= len(rewards) - 4
    return base, noisy


def _with_noise(rollout):
    noise_L = 0.5 * torch.randn(len(rollout.completion_ids))
    return dataclasses.replace(rollout, sampler_logprobs_L=rollout.sampler_logprobs_L + noise_L)


def _spec(method):
    return make_spec(
        method,
        optimiser=Optimiser(learning_rate=one_step.LEARNING_RATE, warmup_steps=0),
        on_policy=small(OnPolicy, group_size=one_step.GROUP_SIZE, sampling=Sampling(max_tokens=one_step.MAX_TOKENS)),
    )


def _plans(method, group):
    """What the engine's method decides about the rollouts of a group."""
    messages = [{"role": "user", "content": group[0].question}]
    prompt = Prompt(0, "p", "id", group[0].question, "0", messages, group[0].prompt_ids)
    rollouts = []
    for place, row in enumerate(group):
        completion = Completion(row.completion_ids, row.sampler_logprobs_L.tolist(), "eos")
        outcome = "correct" if row.reward else "wrong"
        rollouts.append(Rollout(prompt, place, completion, row.text, outcome, row.reward, extracted=""))
    return make_method(_spec(method), TOKENIZER, 256).plan_step([rollouts])[0]


def _teacher_ids(plan):
    return plan.teachers[CONTEXT].ids if plan.teachers else None


class _Record:
    """Loss, gradient norm and gradients of each update of the example."""

    def __init__(self, model):
        self.model, self.losses, self.norms, self.gradients = model, [], [], []

    def __call__(self, loss, norm):
        self.losses.append(loss)
        self.norms.append(norm)
        self.gradients.append([parameter.grad.clone() for parameter in self.model.parameters()])


def _engine(method, base, groups):
    """The same step by the engine: its metrics, the gradients of each update, the weights after it."""
    spec = _spec(method)
    student = Network(copy.deepcopy(base))
    instance = make_method(spec, TOKENIZER, 256)
    teacher = TeacherNetwork(instance.teacher, student) if instance.teacher else None
    adamw = optim.make_adamw(student.model, spec.optimiser)
    gradients = []
    adamw.register_step_pre_hook(
        lambda *_: gradients.append([parameter.grad.clone() for parameter in student.model.parameters()])
    )
    updater = Updater(
        instance, student, teacher, adamw, spec.optimiser, World("cpu"), 400, one_step.CORRECTION_CAP, None
    )
    rows = [
        Row(r.prompt_ids, r.completion_ids, plan, r.sampler_logprobs_L.tolist())
        for group in groups
        for r, plan in zip(group, _plans(method, group), strict=True)
    ]
    size = one_step.PROMPTS_PER_UPDATE * one_step.GROUP_SIZE
    metrics = updater.run([rows[first : first + size] for first in range(0, len(rows), size)], 1, lambda *_: None)
    return metrics, gradients, student.model


@pytest.mark.parametrize("name", METHODS)
def test_losses_gradients_and_weights_are_those_of_the_engine(step, name):
    base, groups = step
    method, run = METHODS[name]
    policy = copy.deepcopy(base)
    record = _Record(policy)
    run(policy, groups, record)
    metrics, gradients, engine_policy = _engine(method, base, groups)

    assert len(record.losses) == len(gradients) == 2
    assert metrics["loss"] == pytest.approx(sum(record.losses) / 2, rel=1e-4, abs=1e-7)
    assert metrics["grad_norm"] == pytest.approx(sum(record.norms) / 2, rel=1e-4)
    assert min(record.norms) > 0.01
    for update in zip(record.gradients, gradients, strict=True):
        for ours, engines in zip(*update, strict=True):
            torch.testing.assert_close(ours, engines, rtol=1e-3, atol=2e-6)
    # AdamW turns rounding of a gradient near 0 into a share of the learning rate, no more.
    for ours, engines in zip(policy.parameters(), engine_policy.parameters(), strict=True):
        assert (ours - engines).abs().mean() < 0.01 * one_step.LEARNING_RATE


def test_advantages_and_teacher_prompts_are_those_of_the_engine(step):
    groups = step[1]
    has_no_teacher = 0
    for group in groups:
        assert [plan.advantage for plan in _plans(METHODS["grpo"][0], group)] == pytest.approx(
            one_step.advantages(group)
        )
        prompts = one_step.teacher_prompts(group, TOKENIZER)
        assert prompts == [_teacher_ids(plan) for plan in _plans(METHODS["sdpo"][0], group)]
        has_no_teacher += prompts.count(None)
    assert 0 < has_no_teacher < len(groups) * one_step.GROUP_SIZE


@pytest.mark.parametrize("advantage", [0.6, -0.4])
def test_clips_and_caps_are_those_of_the_engine(step, advantage):
    """An old policy far from the present one, so that every clip and cap acts."""
    base, groups = step
    row = max(groups[0], key=lambda rollout: len(rollout.completion_ids))
    student_LV = one_step.completion_logits(base, row.prompt_ids, row).detach()
    logprobs_L = one_step.logprobs_of(student_LV, row)
    old_L = logprobs_L + torch.linspace(-2, 2, len(logprobs_L))
    advantages_L = torch.full_like(old_L, advantage)
    teacher_ids = one_step.encode(TOKENIZER, one_step.REPROMPT.format(question=row.question, demonstration="so"))
    teacher_LV = one_step.completion_logits(base, teacher_ids, row).detach()
    targets, shown = torch.tensor(row.completion_ids), {CONTEXT: ShownLogits(teacher_LV)}
    tokens = Tokens(student_LV, targets, logprobs_L, old_L, advantages_L, shown)

    def engine(name):
        return make_method(_spec(METHODS[name][0]), TOKENIZER, 256).token_loss(tokens)

    torch.testing.assert_close(one_step.grpo_loss(row, advantage, student_LV, old_L), engine("grpo"))
    torch.testing.assert_close(one_step.sdpo_loss(base)(row, teacher_ids, student_LV, old_L), engine("sdpo"))


def test_the_example_runs_and_says_what_it_does(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["one_step.py"])
    one_step.main()
    printed = capsys.readouterr().out
    assert printed.count("update: loss") == 4
    assert "\nGRPO\n" in printed and "\nSDPO\n" in printed
