"""Layers with a sliding window attend in blocks: what the library computes with a T x T mask, without the mask."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model_families import family_model
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.schema.common import Sampling
from selfdistill.training.network import Network, backward_through_head
from selfdistill.training.windows import IMPLEMENTATION, attend_in_windows
from tiny import tiny_model

WINDOW = 16


def olmo(**changes):
    return family_model("olmo3_instruct", **changes)


def in_windows(model):
    found = copy.deepcopy(model)
    attend_in_windows(found)
    assert found.config._attn_implementation == IMPLEMENTATION
    return found


class LargestMask(TorchDispatchMode):
    """Elements of the largest tensor of truth values."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.bool:
            self.elements = max(self.elements, result.untyped_storage().nbytes())
        return result


def gradients(model, lengths: list[int]) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Hidden states of the completions, gradients, and the largest mask."""
    network = Network(model)
    torch.manual_seed(0)
    prompts = [torch.randint(5, 90, (3,)).tolist() for _ in lengths]
    completions = [torch.randint(5, 90, (length,)).tolist() for length in lengths]
    model.zero_grad()
    with LargestMask() as masks:
        hidden = network.hidden(network.pack(prompts, completions))
        backward_through_head(network, hidden, lambda part, logits: logits.log_softmax(-1)[:, 7].sum())
    return hidden.detach(), [parameter.grad for parameter in model.parameters()], masks.elements


@pytest.mark.parametrize("lengths", [[5], [13], [14], [15], [30], [100, 3, 47]])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_hidden_states_and_gradients_are_those_of_the_mask(lengths, kv_heads):
    model = olmo(num_key_value_heads=kv_heads).double()
    expected, expected_gradients, _ = gradients(model, lengths)
    found, found_gradients, _ = gradients(in_windows(model), lengths)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_short_rows_are_the_same_bits():
    model = olmo()
    for one, other in zip(gradients(model, [9, 4])[1], gradients(in_windows(model), [9, 4])[1], strict=True):
        assert torch.equal(one, other)


def test_no_mask_grows_with_the_square_of_the_length():
    model = olmo()
    lengths = [800]
    _, _, before = gradients(model, lengths)
    _, _, found = gradients(in_windows(model), lengths)
    assert before >= 800**2
    assert found <= 2 * WINDOW**2 + 800


def test_a_model_without_windows_or_of_another_architecture_is_left_alone():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=48, sliding_window=16,
    )  # fmt: skip
    for model in (tiny_model(40), Gemma2ForCausalLM(config)):
        before = model.config._attn_implementation
        attend_in_windows(model)
        assert model.config._attn_implementation == before


def test_a_sampler_that_shares_the_model_samples_the_same(tmp_path):
    """With rows of different lengths, padded on the left, and a cache that keeps the last positions."""
    model = olmo()
    prompts = [[5, 6, 7], list(range(10, 50)), [8] * 17]
    seeds = [[1, 2], [3, 4], [5, 6]]

    def sample(chosen):
        sampler = TorchSampler(chosen, [2])
        return sampler.generate(prompts, seeds, Sampling(max_tokens=40))

    expected, found = sample(model), sample(in_windows(model))
    assert [[one.token_ids for one in group] for group in found] == [
        [one.token_ids for one in group] for group in expected
    ]


def test_a_saved_model_says_nothing_of_it(tmp_path):
    model = in_windows(olmo())
    model.save_pretrained(tmp_path)
    assert IMPLEMENTATION not in Path(tmp_path, "config.json").read_text()
