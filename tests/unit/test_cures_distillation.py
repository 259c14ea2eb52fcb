"""Cures that distil a target, and the clipped forward KL: numbers by hand, numpy by token, and the whole engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from selfdistill.schema.methods import AdOpsd, EntropyAnchor, ForwardKl, GrpoSdpo, PurifiedOpsd, Sdpo, Srpo, Teacher
from selfdistill.training.data import CONTEXT, PLAIN, Row, RowPlan, RowStatistics, TeacherPrompt, TokenStatistics
from selfdistill.training.methods import Tokens, make_method
from selfdistill.training.methods.sdpo import SdpoMethod
from selfdistill.training.teacher import ShownLogits, TeacherNetwork
from test_cures_credit import train_once
from test_training_contexts import TEMPLATE, group
from test_training_processes import assert_same_training, run_alone, run_together
from tiny import tiny_model
from training_session import REPROMPT, SDPO, TOKENIZER, Session, make_spec, without_times

ALONE = "reference_only"
WHOLE = {"reprompt": REPROMPT, "top_k": None}
METHODS = {
    "sdpo_first": Sdpo(**WHOLE, loss_tokens="first", first_tokens=2),
    "sdpo_not_epistemic": Sdpo(**WHOLE, loss_tokens="not_epistemic"),
    "forward_kl": ForwardKl(reprompt=REPROMPT, entry_clip=None),
    "forward_kl_clipped": ForwardKl(reprompt=REPROMPT, entry_clip=0.05),
    "grpo_sdpo": GrpoSdpo(**WHOLE, weight=0.7, decay_steps=8),
    "srpo": Srpo(**WHOLE, alpha=0.3, entropy_slope=2.0),
    "purified_opsd": PurifiedOpsd(**WHOLE, evidence_cap=0.8, temperature=1.5),
    "ad_opsd": AdOpsd(**WHOLE, entropy_share=0.4),
    "entropy_anchor": EntropyAnchor(**WHOLE, entropy_share=0.4),
}
NAMES = {"purified_opsd": (CONTEXT, PLAIN, ALONE), "ad_opsd": (CONTEXT, PLAIN), "entropy_anchor": (CONTEXT, PLAIN)}
EPISTEMIC = [TOKENIZER.convert_tokens_to_ids(word) for word in ("maybe", "check", "wait")]
STEP = 3


def made(method):
    return make_method(make_spec(method), TOKENIZER, 256)


def tokens_of(student, advantages=None, targets=None, **teachers) -> Tokens:
    """Tokens from rows of probabilities [n][V]; every token has these teachers."""
    logits = torch.tensor(student, dtype=torch.float64).log().requires_grad_()
    count = len(student)
    chosen = torch.tensor(targets or [0] * count)
    logprobs = logits.log_softmax(-1)[torch.arange(count), chosen]
    shown = {name: ShownLogits(torch.tensor(values, dtype=torch.float64).log()) for name, values in teachers.items()}
    given = torch.tensor(advantages or [1.0] * count, dtype=torch.float64)
    return Tokens(logits, chosen, logprobs, logprobs.detach(), given, shown, positions=torch.arange(count), step=STEP)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_the_clip_of_the_forward_kl_turns_the_correction_around():
    """Entries 0.1 log 0.2, 0.1 log(1/3), 0.8 log 4 (capped). Whole, the gradient is S - T; clipped it is
    0.2 S - (0.1, 0.1, 0): the token that the teacher wants most is pushed down."""
    found = {}
    for clip in (None, 0.05):
        tokens = tokens_of([[0.5, 0.3, 0.2]], context=[[0.1, 0.1, 0.8]])
        loss = made(ForwardKl(reprompt=REPROMPT, entry_clip=clip)).token_loss(tokens)
        (gradient,) = torch.autograd.grad(loss.sum(), tokens.student_logits)
        found[clip] = loss.item(), gradient[0].tolist()
    whole, clipped = found[None], found[0.05]
    assert whole[0] == pytest.approx(0.1 * np.log(0.2) + 0.1 * np.log(1 / 3) + 0.8 * np.log(4))
    assert whole[1] == pytest.approx([0.4, 0.2, -0.6])
    assert clipped[0] == pytest.approx(0.1 * np.log(0.2) + 0.1 * np.log(1 / 3) + 0.05)
    assert clipped[1] == pytest.approx([0.0, -0.04, 0.04])


def test_the_forward_kl_without_a_clip_is_that_of_sdpo():
    tokens = tokens_of([[0.5, 0.3, 0.2]], context=[[0.1, 0.1, 0.8]])
    sdpo = made(Sdpo(**WHOLE, alpha=0.0)).token_loss(tokens)
    torch.testing.assert_close(made(METHODS["forward_kl"]).token_loss(tokens), sdpo)


def test_purified_opsd_by_hand():
    """P0 uniform, T = (.8, .2), R = (.5, .5): evidence log 1.6 and log 0.4, centred +-log 2, so the target is T."""

    def target(cap=100.0, alone=(0.5, 0.5), plain=(0.5, 0.5)):
        method = made(PurifiedOpsd(**WHOLE, evidence_cap=cap))
        logits = [torch.tensor([p], dtype=torch.float64).log() for p in ((0.8, 0.2), plain, alone)]
        return method.target(tokens_of([[0.5, 0.5]]), *logits).softmax(-1)[0].tolist()

    assert target() == pytest.approx([0.8, 0.2], abs=1e-4)
    assert target(alone=(0.8, 0.2), plain=(0.3, 0.7)) == pytest.approx([0.3, 0.7])  # All style, no evidence.
    bounded = np.exp(0.5 * np.tanh(np.log(2) / 0.5))
    assert target(cap=0.5) == pytest.approx([bounded / (bounded + 1 / bounded), 1 / (bounded**2 + 1)])


def test_ad_opsd_by_hand():
    """S = (.5, .5), T = (.9, .1), P0 = (.3, .7), tau 0.1: U = sigmoid(-2.9389), sigmoid(8.0472)."""
    logits = [torch.tensor([p] * 2, dtype=torch.float64).log() for p in ((0.9, 0.1), (0.3, 0.7))]
    tokens = tokens_of([[0.5, 0.5]] * 2, advantages=[1.0, 0.0])
    unsure, sure = made(AdOpsd(**WHOLE)).target(tokens, *logits).softmax(-1).tolist()
    assert sure == pytest.approx([0.9, 0.1])
    first, second = 0.050274 * 0.3 + 0.949726 * 0.9, 0.999680 * 0.7 + 0.000320 * 0.1
    assert unsure == pytest.approx([first / (first + second), second / (first + second)], abs=1e-5)
    unsure, sure = made(EntropyAnchor(**WHOLE)).target(tokens, *logits).softmax(-1).tolist()
    assert (unsure, sure) == (pytest.approx([0.3, 0.7]), pytest.approx([0.9, 0.1]))


def row_of(entropy, *, shown=None, advantage=1.0) -> RowStatistics:
    """Statistics with the entropies of the student, and of the teacher if there is one."""
    values = [TokenStatistics(np.zeros(len(e)), np.array(e, dtype=float)) for e in (entropy, shown or [])]
    return RowStatistics(RowPlan(advantage=advantage), values[0], {CONTEXT: values[1]} if shown else {})


def test_the_share_of_unsure_tokens_is_rounded_up_and_ties_go_to_the_first():
    def chosen(share, entropy):
        return made(EntropyAnchor(**WHOLE, entropy_share=share)).weigh([row_of(entropy)], 1)[0].tolist()

    assert chosen(0.4, [1, 3, 2, 3, 0]) == [0, 1, 0, 1, 0]
    assert chosen(0.2, [1, 3, 2, 3, 0]) == [0, 1, 0, 0, 0]
    assert chosen(0.21, [1, 3, 2, 3, 0]) == [0, 1, 0, 1, 0]
    assert chosen(0.2, [1]) == [1]


def test_the_weights_of_srpo_by_hand():
    """exp of minus 0 and log 2 is 1 and 1/2; divided by their mean 4/3 and 2/3. Others keep their advantage."""
    taught, right = made(Srpo(**WHOLE)).weigh([row_of([1, 1], shown=[0, np.log(2)]), row_of([1], advantage=0.5)], 1)
    assert taught.tolist() == pytest.approx([4 / 3, 2 / 3]) and right.tolist() == [0.5]


def test_only_wrong_rollouts_of_srpo_have_a_teacher():
    (plans,) = made(Srpo(reprompt=TEMPLATE)).plan_step([group(0, 0, 1, 0)])
    assert [(CONTEXT in p.teachers, p.has_gradient, p.advantage) for p in plans] == [
        (True, True, pytest.approx(-1 / 3)), (False, True, pytest.approx(2 / 3)), (True, True, pytest.approx(-1 / 3)),
    ]  # fmt: skip
    (nothing,) = made(Srpo(reprompt=TEMPLATE)).plan_step([group(0, 1, 1)])
    assert not any(plan.has_gradient for plan in nothing)


def test_a_sum_has_both_losses_and_fades():
    tokens = tokens_of([[0.5, 0.3, 0.2]], advantages=[-0.5], context=[[0.1, 0.1, 0.8]])
    sdpo = made(Sdpo(**WHOLE)).token_loss(tokens).item()
    method = made(GrpoSdpo(**WHOLE, weight=0.8, decay_steps=4))
    found = [method.token_loss(dataclasses.replace(tokens, step=step)).item() for step in (1, 3, 5)]
    assert found == pytest.approx([0.5 + 0.8 * sdpo, 0.5 + 0.4 * sdpo, 0.5])
    plans = [plan for row in method.plan_step([group(0, 0, 1), group(1, 1, 1)]) for plan in row]
    assert [plan.has_gradient for plan in plans] == [True, True, True, True]
    assert [CONTEXT in plan.teachers for plan in plans] == [True, False, True, True]


@pytest.mark.parametrize(
    ("loss_tokens", "expected"),
    [
        ("all", [1, 1, 1, 1]),
        ("first", [1, 1, 0, 0]),
        ("not_first", [0, 0, 1, 1]),
        ("epistemic", [0, 1, 0, 1]),
        ("not_epistemic", [1, 0, 1, 0]),
    ],
)
def test_masks_of_sdpo_take_the_loss_from_the_other_tokens(loss_tokens, expected):
    draw = np.random.default_rng(0)
    student, teacher = draw.dirichlet(np.ones(len(TOKENIZER)), (2, 4))
    so = TOKENIZER.convert_tokens_to_ids("so")
    tokens = tokens_of(student.tolist(), targets=[so, EPISTEMIC[0], so, EPISTEMIC[2]], context=teacher.tolist())
    every = made(Sdpo(**WHOLE)).token_loss(tokens)
    found = made(Sdpo(**WHOLE, loss_tokens=loss_tokens)).token_loss(tokens)
    torch.testing.assert_close(found, every * torch.tensor(expected, dtype=torch.float64))


def test_a_rollout_of_purified_opsd_has_all_three_teachers_or_none():
    (plans,) = made(PurifiedOpsd(reprompt=TEMPLATE)).plan_step([group(0, 0, 1, 0)])
    assert [list(plan.teachers) for plan in plans] == [[CONTEXT, PLAIN, ALONE], [], [CONTEXT, PLAIN, ALONE]]
    assert texts_of(plans[0]) == {
        CONTEXT: "which 0 solution <think> wait </think> maybe 1 solve",
        PLAIN: "which 0",
        ALONE: "solution <think> wait </think> maybe 1 solve",
    }


def texts_of(plan: RowPlan) -> dict[str, str]:
    """What each teacher of a rollout reads between `user` and the end of its turn."""
    texts = {name: TOKENIZER.decode(prompt.ids) for name, prompt in plan.teachers.items()}
    return {name: text.split(" user")[1].split("<|im_end|>")[0].strip() for name, text in texts.items()}


@pytest.mark.parametrize(
    ("settings", "rewards", "alone"),
    [
        ({"context": "solution"}, (0, 1), "solution <think> wait </think> maybe 1 solve"),
        ({"context": "solution_no_think"}, (0, 1), "solution maybe 1 solve"),
        # Contexts that need no right sibling: the rollout keeps all three teachers.
        ({"context": "reference"}, (0, 0), "solution so 0 solve"),
        ({"context": "answer"}, (0, 0), "solution \\boxed{ 0 } solve"),
        ({"context": "wrong"}, (0, 0), "solution <think> wait </think> maybe 1 solve"),
        ({"context": "concise", "instruction": "so so"}, (0, 0), "so so"),
        ({"context": "donor"}, (0, 0), "solution which 1 so <think> wait </think> maybe 0 solve"),
        ({"context": "reference_only"}, (0, 1), "solution <think> wait </think> maybe 1 solve"),
        ({"context": "solution", "feedback": True}, (0, 0), "check so so solve"),
        ({"context": "none"}, (0, 0), ""),
    ],
)
def test_purified_opsd_shows_alone_what_the_teacher_is_shown_with_the_question(settings, rewards, alone):
    rollouts = [
        dataclasses.replace(r, prompt=dataclasses.replace(r.prompt, solution="so 0"), feedback="so so")
        for r in group(0, *rewards)
    ]
    plan = made(PurifiedOpsd(reprompt=TEMPLATE, **settings)).plan_step([rollouts, group(1, 1)])[0][0]
    shown = texts_of(plan)
    assert (shown[ALONE], shown[PLAIN]) == (alone, "which 0")
    own = "" if settings["context"] == "reference_only" else "which 0"
    assert shown[CONTEXT].split() == [*own.split(), *alone.split()]


def test_the_key_of_purified_opsd_says_what_is_shown_alone():
    """With the context `solution` it is what it always was, and the key is the old one."""

    def found(**settings):
        return PurifiedOpsd(reprompt=TEMPLATE, **settings).identity().get("alone")

    assert found() is None
    assert found(context="solution_no_think") == found(feedback=True) == "context"
    again = PurifiedOpsd(reprompt=TEMPLATE, context="answer")
    assert PurifiedOpsd.model_validate(again.identity()) == again
    # An experiment overrides the context of its recipe, whose settings are written out.
    recipe = PurifiedOpsd(reprompt=TEMPLATE).model_dump()
    assert PurifiedOpsd.model_validate(recipe | {"context": "answer"}) == again
    with pytest.raises(ValidationError, match="`alone` follows from `context` and `feedback`: leave it out"):
        PurifiedOpsd(reprompt=TEMPLATE, alone="context")


@pytest.mark.parametrize("kind", ["ema", "snapshot", "live", "trust_region"])
@pytest.mark.parametrize("settings", [PurifiedOpsd, AdOpsd, EntropyAnchor])
def test_a_target_made_from_the_initial_policy_needs_a_fixed_teacher(settings, kind):
    with pytest.raises(ValidationError, match=rf"`teacher.kind` of {settings.model_fields['name'].default} must be"):
        settings(reprompt=TEMPLATE, teacher=Teacher(kind=kind))


# --- numpy, token by token -------------------------------------------------------------------------------------------


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def kl(p, q):
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def jsd(student, target, alpha):
    middle = (1 - alpha) * student + alpha * target
    return (1 - alpha) * kl(student, middle) + alpha * kl(target, middle)


def target_by_numpy(name, student, teachers, is_unsure):
    """The distribution that a token is pulled to."""
    shown = teachers[CONTEXT]
    if name == "purified_opsd":
        evidence = np.log(shown / teachers[ALONE])
        evidence -= sum(teachers[PLAIN] * evidence)
        moved = teachers[PLAIN] * np.exp(0.8 * np.tanh(evidence / 0.8) / 1.5)
        return moved / moved.sum()
    if not is_unsure or name not in ("ad_opsd", "entropy_anchor"):
        return shown
    if name == "entropy_anchor":
        return teachers[PLAIN]
    kept = 1 / (1 + np.exp(-student * np.log(student / shown) / 0.1))
    mixed = kept * teachers[PLAIN] + (1 - kept) * shown
    return mixed / mixed.sum()


def losses_by_numpy(name, row: Row, student_LV, teachers) -> list[float]:
    """The loss of each token of a row, first update of step STEP (the ratio to the old policy is 1)."""
    entropies = [-sum(p * np.log(p)) for p in student_LV]
    unsure = sorted(range(len(entropies)), key=lambda place: -entropies[place])[: -(-4 * len(entropies) // 10)]
    has = CONTEXT in teachers
    advantage = row.plan.advantage
    losses = []
    for place, (token, student) in enumerate(zip(row.completion_ids, student_LV, strict=True)):
        at = {context: values[place] for context, values in teachers.items()}
        target = target_by_numpy(name, student, at, place in unsure) if has else None
        if name.startswith("forward_kl"):
            entries = target * np.log(target / student) if has else np.zeros(1)
            losses.append(sum(np.minimum(entries, 0.05) if name.endswith("clipped") else entries))
        elif name == "grpo_sdpo":
            losses.append(-advantage + (0.7 * (1 - 2 / 8) * jsd(student, target, 0.5) if has else 0))
        elif name == "srpo":
            weights = [np.exp(2.0 * sum(p * np.log(p))) for p in teachers[CONTEXT]] if has else []
            mean = sum(weights) / max(len(weights), 1)
            losses.append(jsd(student, target, 0.3) * weights[place] / mean if has else -advantage)
        else:
            counts = {"sdpo_first": place < 2, "sdpo_not_epistemic": token not in EPISTEMIC}.get(name, True)
            losses.append(jsd(student, target, 0.5) if has and counts else 0.0)
    return losses


def some_rows(name: str) -> list[Row]:
    """Every third row lacks the teachers; some tokens are epistemic."""
    draw = np.random.default_rng(7)
    rows = []
    for index in range(8):
        prompt, completion = (draw.integers(5, len(TOKENIZER), size).tolist() for size in (3 + index, 2 + index % 5))
        completion[-1] = EPISTEMIC[index % 3]
        shown = {CONTEXT: [*prompt, 8, 9], PLAIN: prompt, ALONE: [8, 9]}
        teachers = {n: TeacherPrompt(shown[n]) for n in NAMES.get(name, (CONTEXT,)) if index % 3}
        plan = RowPlan(advantage=[0.5, -0.5, 0.25][index % 3], teachers=teachers)
        rows.append(Row(prompt, completion, plan, (-3 + draw.standard_normal(len(completion))).tolist()))
    return rows


@pytest.mark.parametrize("name", METHODS)
def test_the_engine_computes_what_numpy_gives(name):
    method, rows = METHODS[name], some_rows(name)
    model = tiny_model(len(TOKENIZER), std=0.4).double()

    def probabilities(prompt, row):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + row.completion_ids])).logits[0, len(prompt) - 1 : -1]
        return [softmax(z) for z in logits.numpy()]

    expected, tokens = 0.0, sum(len(row.completion_ids) for row in rows)
    for row in rows:
        student = probabilities(row.prompt_ids, row)
        teachers = {n: probabilities(prompt.ids, row) for n, prompt in row.plan.teachers.items()}
        losses = losses_by_numpy(name, row, student, teachers)
        chosen = [np.log(p[token]) for p, token in zip(student, row.completion_ids, strict=True)]
        corrected = [
            loss * min(np.exp(own - sampler), 2.0)
            for loss, own, sampler in zip(losses, chosen, row.sampler_logprobs, strict=True)
        ]
        share = 1 / tokens if method.aggregation == "token_mean" else 1 / len(rows) / len(losses)
        expected += sum(corrected) * share
    whole, gradients = train_once(method, [rows], budget=100_000, chunk=1000, step=STEP)
    assert whole["loss"] == pytest.approx(expected, rel=2e-4, abs=1e-6)
    for budget, chunk in ((100_000, 3), (1, 2)):
        found, others = train_once(method, [rows], budget=budget, chunk=chunk, step=STEP)
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-4, abs=1e-6)
        for ours, theirs in zip(gradients, others, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_those_of_the_loss_with_a_fixed_target(name):
    """Central differences of the numpy loss in each logit of the student; the target stays as it was."""
    draw, size = np.random.default_rng(2), len(TOKENIZER)
    student, *others = draw.dirichlet(np.ones(size), (4, 3))
    teachers = dict(zip((CONTEXT, PLAIN, ALONE), others, strict=True))
    shown = {n: teachers[n].tolist() for n in NAMES.get(name, (CONTEXT,))}
    targets = [5, EPISTEMIC[0], 6]
    tokens = tokens_of(student.tolist(), advantages=[1.0, 0.0, 1.0], targets=targets, **shown)
    (found,) = torch.autograd.grad(made(METHODS[name]).token_loss(tokens).sum(), tokens.student_logits)
    for place in range(3):
        target = target_by_numpy(name, student[place], {n: teachers[n][place] for n in shown}, place != 1)

        def loss(logits, place=place, target=target):
            p = softmax(logits)
            if name.startswith("forward_kl"):
                entries = target * np.log(target / p)
                return sum(np.minimum(entries, 0.05) if name.endswith("clipped") else entries)
            counts = {"sdpo_first": place < 2, "sdpo_not_epistemic": targets[place] not in EPISTEMIC}.get(name, True)
            weight = {"grpo_sdpo": 0.7 * 0.75, "srpo": [1.0, 0.0, 1.0][place]}.get(name, float(counts))
            return weight * jsd(p, target, 0.3 if name == "srpo" else 0.5)

        base, step = np.log(student[place]), 1e-6
        nudges = np.eye(size) * step
        slopes = np.array([(loss(base + n) - loss(base - n)) / (2 * step) for n in nudges])
        if name == "grpo_sdpo":  # The advantage of tokens 0 and 2 is 1.
            slopes -= [1.0, 0.0, 1.0][place] * (np.eye(size)[targets[place]] - student[place])
        assert found[place].numpy() == pytest.approx(slopes, abs=1e-6)


@pytest.mark.parametrize(("name", "passes"), {"sdpo_first": 1, "srpo": 2, "purified_opsd": 3, "ad_opsd": 2}.items())
def test_teacher_tokens_are_those_that_the_second_network_reads(monkeypatch, name, passes):
    read = []
    pass_of = TeacherNetwork.shown

    def counted(self, prompts, completions, *options):
        read.extend(len(p) + len(c) for p, c in zip(prompts, completions, strict=True) if p is not None)
        return pass_of(self, prompts, completions, *options)

    monkeypatch.setattr(TeacherNetwork, "shown", counted)
    rows = some_rows(name)
    found, _ = train_once(METHODS[name], [rows], budget=1, chunk=2, step=STEP)
    assert found["teacher_tokens"] == sum(read)
    assert len(read) == passes * sum(bool(row.plan.teachers) for row in rows)


@pytest.mark.parametrize(("budget", "chunk"), [(100_000, 1000), (1, 2), (40, 3)])
def test_tokens_know_their_row_their_position_and_the_step(monkeypatch, budget, chunk):
    rows, seen = some_rows("sdpo_first"), {}
    token_loss = SdpoMethod.token_loss

    def noted(self, tokens):
        half = tokens.select(tokens.positions % 2 == 0)
        assert half.rows.tolist() == tokens.rows[tokens.positions % 2 == 0].tolist() and tokens.step == STEP
        places = zip(tokens.rows.tolist(), tokens.positions.tolist(), strict=True)
        seen.update(zip(places, tokens.targets.tolist(), strict=True))
        return token_loss(self, tokens)

    monkeypatch.setattr(SdpoMethod, "token_loss", noted)
    train_once(METHODS["sdpo_first"], [rows], budget=budget, chunk=chunk, step=STEP)
    assert seen == {(r, p): token for r, row in enumerate(rows) for p, token in enumerate(row.completion_ids)}


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_run_with_each_method(tmp_path, name):
    session = Session(tmp_path, make_spec(METHODS[name], steps=2))
    session.run()
    assert all(np.isfinite(value) for line in session.metrics() for value in line.values())
    assert all(line["supervised_tokens"] and line["demonstration_share"] for line in session.metrics())


@pytest.mark.parametrize("name", ["srpo", "purified_opsd", "ad_opsd"])
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_train_what_one_does(tmp_path, name, sharding):
    """Rows with and without teachers are spread over the processes in another way."""
    spec = make_spec(METHODS[name], steps=3, checkpoint_every=3)
    assert_same_training(run_alone(tmp_path / "one", spec), run_together(tmp_path / "two", spec, sharding=sharding))


def test_a_label_says_what_differs():
    labels = [method.label for method in METHODS.values()]
    assert labels[:5] == [
        "SDPO (c = s), loss on first 2",
        "SDPO (c = s), loss on all but epistemic",
        "forward KL, not clipped (c = s)",
        "forward KL, clipped (c = s)",
        "GRPO + SDPO (c = s), w 0.7 fading",
    ]
    assert SDPO.label == "SDPO (c = s)" and Sdpo(context="wrong", reprompt=REPROMPT).label == "SDPO (c = wrong)"


@pytest.mark.parametrize("mini_batches", ["groups", "mixed"])
def test_sdpo_is_a_method_that_weighs_nothing(tmp_path, monkeypatch, mini_batches):
    """With the pass of `weigh` and its default weights SDPO ends in the same bytes, over several updates a step."""
    spec = make_spec(SDPO, steps=4, prompts_per_step=6, prompts_per_update=2, mini_batches=mini_batches)
    plain = run_alone(tmp_path / "plain", spec)
    asked = []
    weigh = SdpoMethod.weigh
    monkeypatch.setattr(SdpoMethod, "weighs", True)
    monkeypatch.setattr(
        SdpoMethod, "weigh", lambda self, rows, step: asked.append(len(rows)) or weigh(self, rows, step)
    )
    weighed = run_alone(tmp_path / "weighed", spec)
    assert len(asked) == 4 and min(asked) > 2
    assert weighed.weights() == plain.weights()
    same = [
        {name: value for name, value in line.items() if name != "teacher_tokens"}
        for session in (plain, weighed)
        for line in without_times(session.metrics())
    ]
    assert same[:4] == same[4:]
