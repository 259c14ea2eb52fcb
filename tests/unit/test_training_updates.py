"""Loss and gradient of an update: equal however the rows are split, and equal to the paper's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfdistill.losses import divergence
from selfdistill.schema.common import Optimiser
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import Grpo, Sdpo
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.data import CONTEXT, Row, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World
from selfdistill.training.methods import make_method
from selfdistill.training.network import Network
from selfdistill.training.teacher import TeacherNetwork
from selfdistill.training.update import Updater
from tiny import tiny_model
from training_session import (
    GRPO,
    SDPO,
    TOKENIZER,
    Session,
    make_spec,
)


def _gradient(rows, budget: int, method, reverse: bool = False, spec=None):
    """Loss and gradient of one mini-batch, without an optimiser step."""
    spec = spec or make_spec(method)
    student = Network(tiny_model(len(TOKENIZER)))
    instance = make_method(spec, TOKENIZER, 256)
    teacher = TeacherNetwork(instance.teacher, student) if instance.teacher else None
    updater = Updater(
        instance, student, teacher, torch.optim.SGD(student.model.parameters(), lr=0.0),
        Optimiser(learning_rate=1.0, max_grad_norm=1e9), World("cpu"), budget, 2.0, None,
    )  # fmt: skip
    found = updater.run([rows[::-1] if reverse else rows], 1, lambda *_: None)
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
            plan = RowPlan(teachers={CONTEXT: TeacherPrompt([*prompt, 8, 9])}) if index % 3 else RowPlan(False, False)
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
    rows = _rows(SDPO)
    model = tiny_model(len(TOKENIZER)).double()
    total = 0.0
    for row in rows:
        if not row.plan.is_supervised:
            continue
        length = len(row.completion_ids)
        with torch.no_grad():
            student = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, -length - 1 : -1]
            teacher = model(torch.tensor([row.plan.teachers[CONTEXT].ids + row.completion_ids])).logits[
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


def test_more_processes_than_were_started_are_refused(tmp_path):
    with pytest.raises(UserError, match="launcher"):
        Session(tmp_path, make_spec(GRPO), StageRuntime(processes=2)).run()
