"""Whole mini-batches through the trainer, against a slow float64 reference, and token losses against TRL; all random.

The reference takes whole logits of one row at a time from the model's own forward pass, writes every formula of
docs/method.md 2, 5 and 7 out in plain float64 operations, and shares no code with the trainer.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.losses import divergence, grpo_token_loss, token_coefficients, token_logprobs
from selfdistill.schema.common import Optimiser
from selfdistill.schema.methods import Grpo, Sdpo, Sft, Teacher
from selfdistill.training.data import CONTEXT, Row, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World
from selfdistill.training.methods import make_method
from selfdistill.training.network import Network
from selfdistill.training.teacher import TeacherNetwork
from selfdistill.training.update import Updater
from tiny import tiny_model
from training_session import REPROMPT, TOKENIZER, make_spec

VOCABULARY = 40
CLIP = 2.0
AGGREGATIONS = st.sampled_from(["sequence_mean", "token_mean", "unmasked_sequence_mean"])
grpo_methods = st.builds(
    Grpo,
    clip_low=st.sampled_from([0.05, 0.2]),
    clip_high=st.sampled_from([0.05, 0.28]),
    dual_clip=st.sampled_from([None, 1.5, 3.0]),
    aggregation=AGGREGATIONS,
)
sdpo_methods = st.builds(
    Sdpo,
    alpha=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    top_k=st.one_of(st.none(), st.integers(1, VOCABULARY + 3)),
    add_tail=st.booleans(),
    importance_clip=st.sampled_from([None, 2.0]),
    aggregation=AGGREGATIONS,
    teacher=st.sampled_from([Teacher(kind="fixed"), Teacher(kind="live")]),
    reprompt=st.just(REPROMPT),
)
methods = st.one_of(grpo_methods, sdpo_methods, st.builds(Sft, arm=st.just("guided"), aggregation=AGGREGATIONS))


def random_rows(method, seed: int, count: int) -> list[Row]:
    """Rows of random lengths, some without gradient, some masked, one of a single token."""
    draw = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        prompt = draw.integers(3, VOCABULARY, draw.integers(1, 9)).tolist()
        completion = draw.integers(3, VOCABULARY, 1 if index == 0 else draw.integers(1, 12)).tolist()
        logprobs = None
        plan = RowPlan()
        if not isinstance(method, Sft):
            # Around the policy's own log-probs, so that the correction is sometimes capped and sometimes not.
            logprobs = (-3.7 + draw.standard_normal(len(completion))).tolist()
        if isinstance(method, Grpo):
            advantage = float(draw.standard_normal()) if draw.random() < 0.8 else 0.0
            plan = RowPlan(has_gradient=advantage != 0, advantage=advantage)
        elif isinstance(method, Sdpo):
            shown = [*prompt, *draw.integers(3, VOCABULARY, draw.integers(1, 6)).tolist()]
            plan = RowPlan(teachers={CONTEXT: TeacherPrompt(shown)}) if draw.random() < 0.7 else RowPlan(False, False)
        rows.append(Row(prompt, completion, plan, logprobs))
    return rows


def trainer(method, rows, *, tied: bool, chunk: int, budget: int):
    """Loss and gradients as the trainer computes them, in float32."""
    model = tiny_model(VOCABULARY, tied=tied, std=0.4)
    student = Network(model)
    student.chunk_tokens = lambda: chunk
    instance = make_method(make_spec(method), TOKENIZER, 256)
    teacher = TeacherNetwork(instance.teacher, student) if instance.teacher else None
    updater = Updater(
        instance, student, teacher, torch.optim.SGD(model.parameters(), lr=0.0),
        Optimiser(learning_rate=1.0, max_grad_norm=1e12), World("cpu"), budget, CLIP, None,
    )  # fmt: skip
    found = updater.run([rows], 1, lambda *_: None)
    return found["loss"], {name: parameter.grad for name, parameter in model.named_parameters()}


def reference(method, rows, *, tied: bool):
    model = float64_model(tied)
    total = torch.zeros((), dtype=torch.float64)
    for row, weight in zip(rows, row_weights(method, rows), strict=True):
        if weight == 0 or not row.plan.has_gradient:
            continue
        count = len(row.completion_ids)
        own = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, -count - 1 : -1]
        shown = None
        if CONTEXT in row.plan.teachers:
            with torch.no_grad():
                ids = row.plan.teachers[CONTEXT].ids + row.completion_ids
                shown = model(torch.tensor([ids])).logits[0, -count - 1 : -1]
        for place, token in enumerate(row.completion_ids):
            logprobs = own[place] - own[place].logsumexp(0)
            loss = token_loss(method, row, logprobs, token, None if shown is None else shown[place])
            if row.sampler_logprobs is not None:
                loss = loss * min(float(torch.exp(logprobs[token].detach() - row.sampler_logprobs[place])), CLIP)
            total = total + weight * loss
    if total.requires_grad:
        total.backward()
    gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
    return total.item(), gradients


def float64_model(tied: bool):
    """The float32 weights of the trainer's network, computed with in float64."""
    return tiny_model(VOCABULARY, tied=tied, std=0.4).double()


def row_weights(method, rows) -> list[float]:
    """What each token of a row weighs, by the words of docs/method.md 7.1."""
    masked = [not row.plan.is_supervised for row in rows]
    lengths = [len(row.completion_ids) for row in rows]
    supervised_tokens = sum(length for length, out in zip(lengths, masked, strict=True) if not out)
    over = {"sequence_mean": len(rows), "unmasked_sequence_mean": max(masked.count(False), 1)}
    weights = []
    for length, out in zip(lengths, masked, strict=True):
        if out:
            weights.append(0.0)
        elif method.aggregation == "token_mean":
            weights.append(1 / supervised_tokens)
        else:
            weights.append(1 / length / over[method.aggregation])
    return weights


def token_loss(method, row, logprobs_V, token, teacher_logits_V):
    if isinstance(method, Sft):
        return -logprobs_V[token]
    if isinstance(method, Grpo):
        # The first update: the ratio is 1, its gradient that of the log-prob.
        ratio = torch.exp(logprobs_V[token] - logprobs_V[token].detach())
        advantage = row.plan.advantage
        kept = torch.clamp(ratio, 1 - method.clip_low, 1 + method.clip_high)
        loss = -torch.min(ratio * advantage, kept * advantage)
        if method.dual_clip is not None and advantage < 0:
            loss = torch.min(loss, torch.tensor(-method.dual_clip * advantage, dtype=torch.float64))
        return loss
    teacher_V = (teacher_logits_V - teacher_logits_V.logsumexp(0)).exp()
    student_V = logprobs_V.exp()
    keep = min(method.top_k or VOCABULARY, VOCABULARY)
    kept = student_V.detach().argsort(descending=True)[:keep]
    s, t = student_V[kept], teacher_V[kept]
    if keep < VOCABULARY and method.add_tail:
        s, t = torch.cat([s, 1 - s.sum()[None]]), torch.cat([t, 1 - t.sum()[None]])
    elif keep < VOCABULARY:
        s, t = s / s.sum(), t / t.sum()
    alpha = method.alpha
    if alpha == 0:
        return (t * (t / s).log()).sum()
    if alpha == 1:
        return (s * (s / t).log()).sum()
    m = (1 - alpha) * s + alpha * t
    return (1 - alpha) * (s * (s / m).log()).sum() + alpha * (t * (t / m).log()).sum()


@settings(max_examples=60, deadline=None)
@given(
    method=methods,
    seed=st.integers(0, 2**31),
    count=st.integers(1, 6),
    tied=st.booleans(),
    chunk=st.integers(1, 9),
    budget=st.integers(1, 60),
)
def test_a_mini_batch_equals_the_float64_reference(method, seed, count, tied, chunk, budget):
    rows = random_rows(method, seed, count)
    loss, gradients = trainer(method, rows, tied=tied, chunk=chunk, budget=budget)
    expected_loss, expected = reference(method, rows, tied=tied)
    # float32 against float64; the mass beyond the top K is a difference of numbers near 1, which costs digits.
    assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-7)
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in gradients.items():
        assert float((gradient - expected[name]).abs().max()) <= 3e-4 * largest + 1e-8, name


def test_a_tied_head_adds_its_gradient_to_that_of_the_embedding():
    """The reference shares the parameter; an untied network with equal weights gives the two summands apart."""
    rows = random_rows(Sft(arm="guided"), 3, 4)
    _, tied = trainer(Sft(arm="guided"), rows, tied=True, chunk=3, budget=20)
    model = tiny_model(VOCABULARY, tied=False, std=0.4).double()
    model.load_state_dict(float64_model(tied=True).state_dict())
    _, apart = reference_of_model(model, rows)
    both = apart["model.embed_tokens.weight"] + apart["lm_head.weight"]
    torch.testing.assert_close(tied["model.embed_tokens.weight"].double(), both, atol=1e-6, rtol=1e-4)


def reference_of_model(model, rows):
    loss = torch.zeros((), dtype=torch.float64)
    for row, weight in zip(rows, row_weights(Sft(arm="guided"), rows), strict=True):
        count = len(row.completion_ids)
        logits = model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, -count - 1 : -1]
        loss = loss - weight * logits.log_softmax(-1)[torch.arange(count), torch.tensor(row.completion_ids)].sum()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 9),
    vocabulary=st.integers(2, 50),
    top_k=st.integers(1, 49),
    alpha=st.floats(0, 1).filter(lambda a: a in (0, 1) or 0.01 < a < 0.99),
    add_tail=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_random_divergences_and_gradients_equal_trl(seed, tokens, vocabulary, top_k, alpha, add_tail, scale):
    trl = pytest.importorskip("trl.experimental.sdpo.loss_utils")
    top_k = min(top_k, vocabulary - 1)
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        scale * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    ours, theirs = (student.clone().requires_grad_() for _ in range(2))
    loss = divergence(ours, teacher, alpha=alpha, top_k=top_k, add_tail=add_tail)
    expected = trl.compute_topk_self_distillation_loss(
        theirs, teacher, distillation_topk=top_k, distillation_alpha=alpha, distillation_add_tail=add_tail
    )
    torch.testing.assert_close(loss, expected, atol=1e-8, rtol=1e-6)
    weights = torch.rand(tokens, generator=generator, dtype=torch.float64)
    (loss * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-8, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 6), width=st.integers(1, 9))
def test_the_papers_aggregation_is_trls_over_random_masks(seed, rows, width):
    """TRL's SDPO: mean over the tokens of a row, then over all rows, those masked as a whole counting as 0."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    shown = torch.rand(rows, generator=generator) < 0.6
    completion = (torch.arange(width)[None, :] < lengths[:, None]).double()
    loss_mask = completion * shown[:, None]
    trls = ((losses * loss_mask).sum(-1) / loss_mask.sum(-1).clamp(min=1.0)).mean()
    coefficients = token_coefficients(lengths, shown, "sequence_mean")
    ours = (losses * completion * coefficients[:, None]).sum()
    torch.testing.assert_close(ours, trls)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 20),
    clip_low=st.floats(0.01, 0.5),
    clip_high=st.floats(0.01, 0.5),
)
def test_random_grpo_losses_and_gradients_equal_trl(seed, tokens, clip_low, clip_high):
    """TRL's own policy loss of the SDPO trainer, one row, no second clip: mean over the tokens."""
    trl = pytest.importorskip("trl.experimental.sdpo.sdpo_trainer")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, tokens, 7, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 7, (1, tokens), generator=generator)
    old = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] + 0.4 * torch.randn(
        1, tokens, generator=generator, dtype=torch.float64
    )
    advantage = torch.randn(1, generator=generator, dtype=torch.float64)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    expected = trl.SDPOTrainer._compute_policy_loss(policy_settings(clip_low, clip_high), {
        "completion_ids": ids, "completion_mask": torch.ones(1, tokens), "old_per_token_logps": old,
        "advantages": advantage,
    }, theirs)  # fmt: skip
    loss = grpo_token_loss(
        token_logprobs(ours[0], ids[0]), old[0], advantage.expand(tokens),
        clip_low=clip_low, clip_high=clip_high, dual_clip=None,
    ).mean()  # fmt: skip
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def policy_settings(clip_low: float, clip_high: float):
    """What TRL's method reads of its trainer."""
    from collections import defaultdict
    from types import SimpleNamespace

    return SimpleNamespace(
        importance_sampling_level="token",
        epsilon_low=clip_low,
        epsilon_high=clip_high,
        loss_type="grpo",
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda tensor: tensor),
        _metrics={"train": defaultdict(list)},
    )
