"""Losses against hand-made numbers, brute force in float64, and an independent implementation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.losses import (
    divergence,
    group_advantages,
    grpo_token_loss,
    importance_weights,
    token_coefficients,
    token_logprobs,
)

STUDENT = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.2, 0.6, 0.05, 0.05, 0.1]], dtype=torch.float64).log()
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: docs/method.md 2.2
VECTORS = {
    (None, True): (0.280486, 0.052129, 0.069809, 0.053286, 0.293804),
    (2, True): (0.232630, 0.043549, 0.058692, 0.045080, 0.250201),
    (2, False): (0.290788, 0.054437, 0.073365, 0.056349, 0.312752),
}


@pytest.mark.parametrize(("support", "expected"), VECTORS.items())
def test_divergence_gives_the_papers_test_vectors(support, expected):
    top_k, add_tail = support
    for alpha, value in zip(ALPHAS, expected, strict=True):
        found = divergence(STUDENT, TEACHER, alpha=alpha, top_k=top_k, add_tail=add_tail)
        assert found.item() == pytest.approx(value, abs=5e-7)


def test_divergence_ignores_a_constant_added_to_the_logits():
    options = {"alpha": 0.5, "top_k": 2, "add_tail": True}
    expected = divergence(STUDENT, TEACHER, **options)
    torch.testing.assert_close(divergence(STUDENT + 3, TEACHER - 7, **options), expected)


def test_top_k_of_at_least_the_vocabulary_is_the_whole_vocabulary():
    full = divergence(STUDENT, TEACHER, alpha=0.5, top_k=None, add_tail=True)
    for top_k in (5, 100):
        torch.testing.assert_close(divergence(STUDENT, TEACHER, alpha=0.5, top_k=top_k, add_tail=True), full)


def _brute_force(student, teacher, alpha, top_k, add_tail):
    """Sums over categories in plain Python."""
    results = []
    for s_row, t_row in zip(student.softmax(-1).tolist(), teacher.softmax(-1).tolist(), strict=True):
        kept = sorted(range(len(s_row)), key=lambda i: -s_row[i])[: top_k or len(s_row)]
        s, t = [s_row[i] for i in kept], [t_row[i] for i in kept]
        if len(kept) < len(s_row) and add_tail:
            s, t = [*s, 1 - sum(s)], [*t, 1 - sum(t)]
        elif len(kept) < len(s_row):
            s, t = [p / sum(s) for p in s], [p / sum(t) for p in t]
        m = [(1 - alpha) * a + alpha * b for a, b in zip(s, t, strict=True)]

        def kl(p, q):
            return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

        results.append(
            kl(t, s) if alpha == 0 else kl(s, t) if alpha == 1 else (1 - alpha) * kl(s, m) + alpha * kl(t, m)
        )
    return torch.tensor(results, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(3, 12),
    top_k=st.one_of(st.none(), st.integers(1, 12)),
    alpha=st.sampled_from([*ALPHAS, 0.1, 0.9]),
    add_tail=st.booleans(),
)
def test_divergence_equals_brute_force(seed, vocabulary, top_k, alpha, add_tail):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, vocabulary, generator=generator, dtype=torch.float64) for _ in range(2))
    found = divergence(student, teacher, alpha=alpha, top_k=top_k, add_tail=add_tail)
    torch.testing.assert_close(found, _brute_force(student, teacher, alpha, top_k, add_tail), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("top_k", "add_tail"), [(None, True), (7, True), (7, False)])
def test_divergence_and_gradient_equal_trl(alpha, top_k, add_tail):
    trl = pytest.importorskip("trl.experimental.sdpo.loss_utils")
    generator = torch.Generator().manual_seed(1)
    student, teacher = (2 * torch.randn(11, 40, generator=generator) for _ in range(2))
    ours, theirs = (student.clone().requires_grad_() for _ in range(2))
    loss = divergence(ours, teacher, alpha=alpha, top_k=top_k, add_tail=add_tail)
    if top_k is None:
        expected = trl.compute_full_logit_self_distillation_loss(theirs, teacher, distillation_alpha=alpha)
    else:
        expected = trl.compute_topk_self_distillation_loss(
            theirs, teacher, distillation_topk=top_k, distillation_alpha=alpha, distillation_add_tail=add_tail
        )
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_divergence_gradient_is_the_derivative_and_spares_the_teacher(alpha):
    student = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    teacher = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    torch.autograd.gradcheck(lambda s: divergence(s, teacher, alpha=alpha, top_k=3, add_tail=True), (student,))
    divergence(student, teacher, alpha=alpha, top_k=3, add_tail=True).sum().backward()
    assert teacher.grad is None


def test_divergence_stays_finite_when_the_student_is_certain():
    student = torch.tensor([[60.0, 0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 0.0, 60.0]])
    for alpha in ALPHAS:
        loss = divergence(student, teacher, alpha=alpha, top_k=2, add_tail=True)
        loss.backward()
        assert loss.isfinite().all()
        assert student.grad.isfinite().all()


def test_grpo_loss_gives_hand_made_numbers():
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5, 10.0])
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    found = grpo_token_loss(ratio.log(), torch.zeros(6), advantage, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    # A > 0: -A min(r, 1.28) where r is above, -A r where it is below. A < 0: max(r, 0.8) |A|, at most 3 |A|.
    torch.testing.assert_close(found, torch.tensor([-2.0, -2.56, -1.0, 3.0, 1.6, 6.0]))


def test_without_dual_clip_a_large_ratio_is_not_bounded():
    found = grpo_token_loss(
        torch.tensor([10.0]).log(), torch.zeros(1), torch.tensor([-2.0]), clip_low=0.2, clip_high=0.28, dual_clip=None
    )
    torch.testing.assert_close(found, torch.tensor([20.0]))


def test_grpo_gradient_is_that_of_the_policy_gradient_at_ratio_one():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -0.25])
    grpo_token_loss(
        logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0
    ).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


def test_advantages_are_centred_and_optionally_divided():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(group_advantages(rewards, divide_by_std=False), torch.tensor([0.5, -0.5, -0.5, 0.5]))
    # Unbiased standard deviation of two ones and two zeros: sqrt(1/3).
    scaled = group_advantages(rewards, divide_by_std=True)
    torch.testing.assert_close(scaled, torch.tensor([0.5, -0.5, -0.5, 0.5]) * math.sqrt(3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_equal_rewards_have_no_advantage_at_all(reward):
    assert group_advantages(torch.full((7,), reward), divide_by_std=True).tolist() == [0.0] * 7


def test_importance_weights_are_capped_and_carry_no_gradient():
    numerator = torch.tensor([0.0, 1.0, -1.0, 100.0], requires_grad=True)
    weights = importance_weights(numerator, torch.zeros(4), 2.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, math.exp(-1), 2.0]))
    assert not weights.requires_grad
    assert importance_weights(numerator, torch.zeros(4), None).tolist() == [1.0] * 4


def test_importance_weights_equal_trl():
    trl = pytest.importorskip("trl.experimental.sdpo.loss_utils")
    generator = torch.Generator().manual_seed(4)
    losses, new, old = (3 * torch.randn(50, generator=generator) for _ in range(3))
    expected = trl.apply_importance_sampling_clipping(losses, new, old, 2.0)
    torch.testing.assert_close(losses * importance_weights(new, old, 2.0), expected)


def test_token_logprobs_pick_the_log_softmax():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 8, 3, 3, 1])
    torch.testing.assert_close(token_logprobs(logits, ids), logits.log_softmax(-1)[torch.arange(5), ids])


def _aggregate(losses, mask, mode):
    lengths = mask.sum(1).to(torch.long)
    # Rows that are masked as a whole have a length of their own in training; here their tokens are masked instead.
    coefficients = token_coefficients(torch.where(lengths > 0, lengths, 4), lengths > 0, mode)
    return (losses * mask * coefficients[:, None]).sum().item()


def test_aggregations_give_hand_made_numbers():
    losses = torch.tensor([[1.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 6.0], [9.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert _aggregate(losses, mask, "sequence_mean") == pytest.approx((2 + 3 + 0) / 3)
    assert _aggregate(losses, mask, "unmasked_sequence_mean") == pytest.approx((2 + 3) / 2)
    assert _aggregate(losses, mask, "token_mean") == pytest.approx((4 + 12) / 6)


def test_a_batch_without_supervision_has_zero_coefficients():
    for mode in ("sequence_mean", "token_mean", "unmasked_sequence_mean"):
        assert token_coefficients(torch.tensor([3, 5]), torch.tensor([False, False]), mode).tolist() == [0.0, 0.0]
