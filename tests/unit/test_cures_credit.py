"""RLSD, RLCSD and AntiSD: numbers worked by hand, formulas written again one token at a time, and whole runs."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from selfdistill.losses.aggregation import token_coefficients
from selfdistill.schema.common import Optimiser
from selfdistill.schema.methods import Antisd, Rlcsd, Rlsd, Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.data import CONTEXT, Row, RowPlan, RowStatistics, TeacherPrompt, TokenStatistics
from selfdistill.training.distributed import World
from selfdistill.training.methods import make_method
from selfdistill.training.network import Network
from selfdistill.training.teacher import TeacherNetwork
from selfdistill.training.update import Updater
from test_training_contexts import group
from test_training_processes import assert_same_training, run_alone, run_together
from tiny import tiny_model
from training_session import REPROMPT, TOKENIZER, Session, make_spec, without_times

RLSD = Rlsd(reprompt=REPROMPT)
RLCSD = Rlcsd(reprompt=REPROMPT, wrong=2)
ANTISD = Antisd(reprompt=REPROMPT, start_step=3)


def statistics(advantage: float, student, entropy=None, **teachers) -> RowStatistics:
    """A row from probabilities of its sampled tokens; the teachers' entropy is 1 unless it is given."""

    def of(probabilities):
        return TokenStatistics(np.log(probabilities), np.full(len(probabilities), entropy or 1.0))

    plan = RowPlan(advantage=advantage, teachers={name: TeacherPrompt([5]) for name in teachers})
    return RowStatistics(plan, of(student), {name: of(values) for name, values in teachers.items()})


def weigh(method, *rows, step=1):
    return [row.tolist() for row in make_method(make_spec(method), TOKENIZER, 256).weigh(rows, step)]


def random_row(chance: random.Random, *names: str) -> RowStatistics:
    length = chance.randint(1, 6)
    draw = [[chance.uniform(0.05, 0.95) for _ in range(length)] for _ in range(1 + len(names))]
    return statistics(chance.choice([-0.75, -0.25, 0.0, 0.5]), draw[0], **dict(zip(names, draw[1:], strict=True)))


# --- RLSD ------------------------------------------------------------------------------------------------------------


def test_rlsd_by_hand():
    """T/S = 1.1, 2, 0.5. Right: weights 1.1, 1.2 and 0.8 (both clipped). Wrong: 1/1.1, 0.8 and 1.2. lambda is 0.5."""
    student, teacher = [0.5, 0.3, 0.4], [0.55, 0.6, 0.2]
    right, wrong, alone = weigh(
        RLSD,
        statistics(1.0, student, context=teacher),
        statistics(-2.0, student, context=teacher),
        statistics(1.0, student),
    )
    assert right == pytest.approx([1.05, 1.1, 0.9])
    assert wrong == pytest.approx([-(1 + 1 / 1.1), -1.8, -2.2])
    assert alone == [1.0, 1.0, 1.0]


def test_the_weight_of_rlsd_fades_in_a_line():
    row = statistics(1.0, [0.3], context=[0.6])
    found = [weigh(RLSD, row, step=step)[0][0] for step in (1, 26, 51, 99)]
    assert found == pytest.approx([1.1, 1.05, 1.0, 1.0])
    assert weigh(Rlsd(reprompt=REPROMPT, decay_steps=None), row, step=99)[0] == pytest.approx([1.1])


def test_rlsd_one_token_at_a_time():
    chance = random.Random(0)
    for _ in range(50):
        row, step = random_row(chance, CONTEXT), chance.randint(1, 60)
        share = max(0.5 - 0.01 * (step - 1), 0)
        for place, found in enumerate(weigh(RLSD, row, step=step)[0]):
            a = row.plan.advantage
            s, t = math.exp(row.student.logprobs[place]), math.exp(row.teachers[CONTEXT].logprobs[place])
            ratio = t / s if a > 0 else s / t
            assert found == pytest.approx(a * (1 - share) + a * share * min(max(ratio, 0.8), 1.2))


# --- RLCSD -----------------------------------------------------------------------------------------------------------


def test_rlcsd_by_hand():
    """Mean of the wrong ones: 0.2, 0.4, 0.3. Contrasts: log 2, log 0.5, 0, so r = 0.5, -0.5, 0 (tau is tiny)."""
    shown = {"context": [0.4, 0.2, 0.3], "wrong_0": [0.1, 0.5, 0.2], "wrong_1": [0.3, 0.3, 0.4]}
    found = weigh(RLCSD, *(statistics(a, [0.5] * 3, **shown) for a in (0.75, -0.75, 0.25, 0.0)))
    assert found[0] == pytest.approx([1.25, 0.25, 0.75])
    assert found[1] == pytest.approx([-0.25, -1.25, -0.75])
    assert found[2] == pytest.approx([0.75, 0.0, 0.25])  # Never beyond 0.
    assert found[3] == [0.0, 0.0, 0.0]


def test_rlcsd_keeps_the_advantage_where_a_side_is_missing_or_the_contrast_is_small():
    small = {"context": [0.3001], "wrong_0": [0.3]}
    rows = [statistics(0.5, [0.5], **shown) for shown in ({"context": [0.9]}, {"wrong_0": [0.9]}, small)]
    assert weigh(RLCSD, *rows) == [[0.5], [0.5], [0.5]]


def test_rlcsd_one_token_at_a_time():
    chance = random.Random(1)
    for _ in range(50):
        names = ["wrong_0", "wrong_1"][: chance.randint(1, 2)]
        row, scale = random_row(chance, CONTEXT, *names), chance.choice([0.02, 2.0])
        method = RLCSD.model_copy(update={"temperature": scale})
        for place, found in enumerate(weigh(method, row)[0]):
            a = row.plan.advantage
            wrong = sum(math.exp(row.teachers[name].logprobs[place]) for name in names) / len(names)
            r = 0.5 * math.tanh((row.teachers[CONTEXT].logprobs[place] - math.log(wrong)) / scale)
            expected = a + r if abs(r) > 0.02 else a
            assert found == pytest.approx(0.0 if a * expected <= 0 else expected)


TWO_MEANS = RLCSD.model_copy(update={"two_means": True, "aggregation": "token_mean"})


def test_the_two_means_of_rlcsd_by_hand():
    """Two of four tokens are changed, so each of the four counts twice: the sum of two means of two."""
    shown = {"context": [0.4, 0.2, 0.3], "wrong_0": [0.2, 0.4, 0.3]}
    changed, alone = weigh(TWO_MEANS, statistics(0.75, [0.5] * 3, **shown), statistics(-0.5, [0.5]))
    assert changed == pytest.approx([2 * 1.25, 2 * 0.25, 2 * 0.75]) and alone == [-1.0]
    assert weigh(TWO_MEANS, statistics(-0.5, [0.5])) == [[-0.5]]


def test_the_two_means_of_rlcsd_one_token_at_a_time():
    """Before the first update a token's loss is minus its advantage."""
    chance = random.Random(3)
    for _ in range(50):
        rows = [random_row(chance, CONTEXT, "wrong_0") for _ in range(chance.randint(1, 4))]
        changed, others = [], []
        for row, plain in zip(rows, weigh(RLCSD, *rows), strict=True):
            for place, advantage in enumerate(plain):
                contrast = row.teachers[CONTEXT].logprobs[place] - row.teachers["wrong_0"].logprobs[place]
                is_changed = abs(0.5 * math.tanh(contrast / 0.02)) > 0.02
                (changed if is_changed else others).append(advantage)
        found = [a for row in weigh(TWO_MEANS, *rows) for a in row]
        means = [sum(values) / len(values) for values in (changed, others) if values]
        assert sum(found) / len(found) == pytest.approx(sum(means))


def test_the_loss_of_two_means_is_their_sum_where_rollouts_without_an_advantage_are_in_the_batch():
    method = make_method(make_spec(TWO_MEANS), TOKENIZER, 256)
    plans = [plan for rewards in ((1, 0), (1, 1), (0, 0)) for plan in method.plan(group(0, *rewards))]
    assert [plan.is_supervised for plan in plans] == [True, True, False, False, False, False]
    shown = {"context": [0.4, 0.2, 0.3], "wrong_0": [0.2, 0.4, 0.3]}
    rows = [statistics(plan.advantage, [0.5] * 3, **shown) for plan in plans if plan.has_gradient]
    lengths, supervised = torch.tensor([3] * 6), torch.tensor([plan.is_supervised for plan in plans])
    coefficients = token_coefficients(lengths, supervised, "token_mean")
    loss = -sum(c * sum(row) for c, row in zip(coefficients.tolist(), weigh(TWO_MEANS, *rows), strict=False))
    # Advantages are 0.5 and -0.5. Changed: 1 and 0 of the first, 0 and -1 of the second; unchanged: 0.5 and -0.5.
    assert loss == pytest.approx(-((1 + 0 + 0 - 1) / 4 + (0.5 - 0.5) / 2))
    assert weigh(TWO_MEANS, rows[0])[0] == pytest.approx([1 * 3 / 2, 0, 0.5 * 3])


def test_two_means_are_those_of_tokens():
    with pytest.raises(ValidationError, match="`two_means` needs `aggregation: token_mean`, not `sequence_mean`"):
        Rlcsd(reprompt=REPROMPT, two_means=True)
    assert "two_means" not in RLCSD.identity()


# --- AntiSD ----------------------------------------------------------------------------------------------------------


def test_antisd_by_hand():
    """T/S = 1, 3, 1/3: phi = 0, log(4/2)/2, log((4/3)/2)/2; lambda 0.5."""
    row = statistics(1.0, [0.3, 0.3, 0.9], context=[0.3, 0.9, 0.3])
    method = make_method(make_spec(ANTISD), TOKENIZER, 256)
    found = method.weigh([row, statistics(1.0, [0.5])], 3)
    assert found[0].tolist() == pytest.approx([1.0, 1 - math.log(2) / 4, 1 + math.log(1.5) / 4])
    assert found[1].tolist() == [1.0]


def test_the_gate_of_antisd_compares_with_the_warm_up():
    """Entropies 1 and 3 in the warm-up: its mean is 2, the floor 1.86. The gate closes below it and opens again."""
    method, found = make_method(make_spec(ANTISD), TOKENIZER, 256), []
    for step, entropy in enumerate([1.0, 3.0, 1.87, 1.85, 1.9], start=1):
        (weights,) = method.weigh([statistics(0.0, [0.3], entropy, context=[0.9])], step)
        found.append((weights[0] < 0, method.metrics()["gate_open"], method.metrics()["teacher_entropy"]))
    assert found == [(False, 0, 1), (False, 0, 3), (True, 1, 1.87), (False, 0, 1.85), (True, 1, 1.9)]
    assert method.state == {"steps": 2, "entropy": 4.0}


def test_the_gate_of_antisd_goes_on_from_its_state():
    row = statistics(0.0, [0.3], 1.85, context=[0.9])
    fresh, resumed = (make_method(make_spec(ANTISD), TOKENIZER, 256) for _ in range(2))
    resumed.state = {"steps": 2, "entropy": 4.0}
    assert fresh.weigh([row], 3)[0] < 0 and resumed.weigh([row], 3)[0] == 0


def test_a_step_without_a_context_has_no_entropy_of_an_earlier_one():
    """Otherwise the metric of that step would depend on whether the run was resumed before it."""
    whole, resumed = (make_method(make_spec(ANTISD), TOKENIZER, 256) for _ in range(2))
    whole.weigh([statistics(0.0, [0.3], 1.5, context=[0.9])], 1)
    resumed.state = dict(whole.state)
    for method in (whole, resumed):
        method.weigh([statistics(1.0, [0.5])], 2)
    assert whole.metrics() == resumed.metrics() == {"gate_open": 0.0, "teacher_entropy": 0.0}
    assert whole.state == resumed.state == {"steps": 1, "entropy": 1.5}


def test_antisd_one_token_at_a_time():
    chance = random.Random(2)
    for _ in range(50):
        row = random_row(chance, CONTEXT)
        for place, found in enumerate(weigh(ANTISD, row, step=9)[0]):
            s, t = math.exp(row.student.logprobs[place]), math.exp(row.teachers[CONTEXT].logprobs[place])
            assert found == pytest.approx(row.plan.advantage - 0.25 * math.log((1 + t / s) / 2))


# --- in the engine ---------------------------------------------------------------------------------------------------


def rows_with(*names: str) -> list[Row]:
    """Rows of which some lack the context, some the other names, and some have no advantage."""
    draw = np.random.default_rng(5)
    rows = []
    for index in range(9):
        prompt, completion = (draw.integers(5, len(TOKENIZER), size).tolist() for size in (3 + index, 1 + index % 5))
        teachers = {
            name: TeacherPrompt([*prompt, 8 + number, 9])
            for number, name in enumerate(names)
            if (index + number) % 3 or number == 0 and index == 0
        }
        plan = RowPlan(advantage=[0.5, -0.5, 0.25][index % 3], teachers=teachers)
        rows.append(Row(prompt, completion, plan, (-3 + draw.standard_normal(len(completion))).tolist()))
    return rows


def train_once(method, mini_batches, *, budget: int, chunk: int, step: int, rate: float = 0.0):
    student = Network(tiny_model(len(TOKENIZER), std=0.4))
    student.chunk_tokens = lambda: chunk
    made = make_method(make_spec(method), TOKENIZER, 256)
    updater = Updater(
        made, student, TeacherNetwork(made.teacher, student), torch.optim.SGD(student.model.parameters(), lr=rate),
        Optimiser(learning_rate=1.0, max_grad_norm=1e9), World("cpu"), budget, 2.0,
        torch.arange(len(TOKENIZER)) % 5 == 0,
    )  # fmt: skip
    return updater.run(mini_batches, step, lambda *_: None), [p.grad for p in student.model.parameters()]


def by_the_model_itself(method, rows, step):
    """Loss, gradients and gap to the teacher from whole forward passes in float64; the first update's ratio is 1."""
    model = tiny_model(len(TOKENIZER), std=0.4).double()

    def logits(prompt, row):
        return model(torch.tensor([prompt + row.completion_ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    def chosen(logprobs, row):
        return logprobs[torch.arange(len(row.completion_ids)), torch.tensor(row.completion_ids)]

    def of(logprobs, row):
        return TokenStatistics(chosen(logprobs, row).numpy(), -(logprobs.exp() * logprobs).sum(-1).numpy())

    with torch.no_grad():
        found = [
            RowStatistics(
                row.plan,
                of(logits(row.prompt_ids, row), row),
                {name: of(logits(prompt.ids, row), row) for name, prompt in row.plan.teachers.items()},
            )
            for row in rows
        ]
    advantages = make_method(make_spec(method), TOKENIZER, 256).weigh(found, step)
    total = torch.zeros((), dtype=torch.float64)
    for row, weights in zip(rows, advantages, strict=True):
        logprobs = chosen(logits(row.prompt_ids, row), row)
        ratio = (logprobs - logprobs.detach()).exp()
        corrections = (logprobs.detach() - torch.tensor(row.sampler_logprobs)).exp().clamp(max=2.0)
        total = total - (torch.from_numpy(weights) * ratio * corrections).mean() / len(rows)
    total.backward()
    gaps = [t - s for f in found if CONTEXT in f.teachers
            for t, s in zip(f.teachers[CONTEXT].logprobs, f.student.logprobs, strict=True)]  # fmt: skip
    return total.item(), [p.grad for p in model.parameters()], sum(gaps), len(gaps)


@pytest.mark.parametrize("method", [RLSD, RLCSD.model_copy(update={"temperature": 1.0}), ANTISD], ids=lambda m: m.name)
@pytest.mark.parametrize(("budget", "chunk"), [(100_000, 1000), (100_000, 4), (1, 2)])
def test_the_engine_computes_what_the_model_itself_gives(method, budget, chunk):
    rows = rows_with(CONTEXT, "wrong_0", "wrong_1") if method.name == "rlcsd" else rows_with(CONTEXT)
    found, gradients = train_once(method, [rows], budget=budget, chunk=chunk, step=6)
    loss, wanted, gap, count = by_the_model_itself(method, rows, 6)
    assert found["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-3)
    marked = sum(t % 5 == 0 for row in rows if CONTEXT in row.plan.teachers for t in row.completion_ids)
    both = found["teacher_gap_epistemic"] * marked + found["teacher_gap_other"] * (count - marked)
    assert both == pytest.approx(gap, rel=1e-4)


def test_all_updates_of_a_step_use_statistics_from_before_the_first():
    """The second update's loss is that of its rows under the first policy, with the ratio of the two policies."""
    rows = rows_with(CONTEXT)
    method = ANTISD.model_copy(update={"clip_low": 1e-6, "clip_high": 1e-6, "dual_clip": None})
    alone, _ = train_once(method, [rows], budget=1000, chunk=1000, step=6, rate=0.0)
    still, _ = train_once(method, [rows[:4], rows[4:]], budget=1000, chunk=1000, step=6, rate=0.0)
    moved, _ = train_once(method, [rows[:4], rows[4:]], budget=1000, chunk=1000, step=6, rate=0.5)
    assert still["method_teacher_entropy"] == moved["method_teacher_entropy"]
    assert still["method_teacher_entropy"] == pytest.approx(alone["method_teacher_entropy"], rel=1e-6)
    assert still["loss"] != moved["loss"]


def gated(**changes) -> Antisd:
    return Antisd(
        reprompt=REPROMPT, start_step=2, entropy_floor=0.973, strength=2.0, teacher=Teacher(kind="live"), **changes
    )


def test_a_stateful_method_killed_and_resumed_ends_in_the_same_bytes(tmp_path):
    """The gate opens in some steps and not in others, so a lost state would show."""
    spec = make_spec(gated(), steps=6)
    whole = run_alone(tmp_path / "whole", spec)
    gates = [line["method_gate_open"] for line in whole.metrics()]
    assert gates[0] == 0 and 1 in gates[1:] and 0 in gates[1:]
    killed = Session(tmp_path / "killed", spec, StageRuntime(state_every_steps=1))

    def die():
        killed.on_report = lambda line: (
            os.kill(os.getpid(), signal.SIGKILL) if line.get("phase") == "updates" and line["step"] == 4 else None
        )
        killed.run()

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert killed.run().resumed_from == 3
    assert killed.weights() == whole.weights()
    assert without_times(killed.metrics()) == without_times(whole.metrics())


@pytest.mark.parametrize("method", [RLSD, RLCSD, gated()], ids=lambda m: m.name)
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_what_one_does(tmp_path, method, sharding):
    spec = make_spec(method, steps=3, checkpoint_every=3)
    one = run_alone(tmp_path / "one", spec)
    assert_same_training(one, run_together(tmp_path / "two", spec, sharding=sharding))
    assert {name for name in one.metrics()[0] if name.startswith("method_")} == {
        "rlsd": set(),
        "rlcsd": {"method_changed_token_share"},
        "antisd": {"method_gate_open", "method_teacher_entropy"},
    }[method.name]
