"""The hand-written way back through the head, against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfdistill.losses import entropy
from selfdistill.losses.normalise import chosen_logprobs
from selfdistill.training.head import Head, is_matrix, matrix_head


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 5),
    vocabulary=st.integers(1, 30),
    chosen=st.integers(1, 9),
    block=st.integers(1, 70),
)
def test_chosen_logprobs_and_entropies_equal_the_log_softmax(seed, tokens, vocabulary, chosen, block):
    """Tokens may be chosen twice; the number of rows held at a time changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    index = torch.randint(0, vocabulary, (tokens, chosen), generator=generator)
    weights = torch.randn(tokens, chosen, generator=generator, dtype=torch.float64)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfdistill.losses.normalise._BLOCK_ELEMENTS", {"cpu": block})
        found = chosen_logprobs(ours, index)
        (found * weights).sum().backward()
        entropies = entropy(logits)
    expected = theirs.log_softmax(-1)
    torch.testing.assert_close(found, expected.gather(-1, index))
    (expected.gather(-1, index) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=logits).entropy())


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_matrix_gives_the_gradients_of_automatic_differentiation(bias, frozen, softcap):
    torch.manual_seed(0)
    layer = nn.Linear(6, 11, bias=bias).requires_grad_(not frozen)
    states, weights = torch.randn(4, 6), torch.randn(4, 11)
    scale = (softcap, 0.7)
    head = matrix_head(layer.weight, layer.bias, torch.float32, *scale)
    # Twice: gradients are added to what is there.
    found = [head.backward(states, lambda logits: (logits.log_softmax(-1) * weights).sum()) for _ in range(2)]
    gradients = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad(set_to_none=True)
    other = Head(layer, *scale)
    expected = [other.backward(states, lambda logits: (logits.log_softmax(-1) * weights).sum()) for _ in range(2)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, parameter in zip(gradients, layer.parameters(), strict=True):
        assert (ours is None) == frozen
        if not frozen:
            torch.testing.assert_close(ours, parameter.grad)


def test_a_bfloat16_head_adds_up_its_gradient_in_float32():
    torch.manual_seed(0)
    layer = nn.Linear(64, 300, bias=False)
    states, weights = torch.randn(9, 64), torch.randn(9, 300)
    exact = matrix_head(layer.weight, None, torch.float32, None, 1.0)
    expected = exact.backward(states, lambda logits: (logits.log_softmax(-1) * weights).sum())
    gradient = layer.weight.grad.clone()
    layer.zero_grad(set_to_none=True)
    head = matrix_head(layer.weight, None, torch.bfloat16, None, 1.0)
    found = head.backward(states, lambda logits: (logits.log_softmax(-1) * weights).sum())
    assert layer.weight.grad.dtype == found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.01
    assert float((layer.weight.grad - gradient).norm() / gradient.norm()) < 0.01


def test_only_a_plain_matrix_is_taken_for_one():
    class Scaled(nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    assert is_matrix(nn.Linear(2, 3))
    assert not is_matrix(Scaled(2, 3))
