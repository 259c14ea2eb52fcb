"""The torch sampler: right text, whatever the batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selfdistill.generation import decoders, torch_sampler
from selfdistill.generation.base import sample_seed
from selfdistill.generation.randomness import random_bits, uniforms
from selfdistill.generation.torch_sampler import TorchSampler, draw_tokens
from selfdistill.generation.vllm_sampler import VllmSampler
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError
from tiny import tiny_model

VOCABULARY = 40
EOS = [2, 3, 4]
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [5, 6, 7]]


@pytest.fixture(scope="module")
def model():
    return tiny_model(VOCABULARY)


def seeds(samples: int, prompts: int = len(PROMPTS)) -> list[list[int]]:
    return [[sample_seed(0, prompt, sample) for sample in range(samples)] for prompt in range(prompts)]


def ids(answers):
    return [[completion.token_ids for completion in group] for group in answers]


def test_splitmix_gives_the_published_numbers():
    bits = random_bits(np.array([1234567], dtype=np.uint64), np.arange(3, dtype=np.uint64))
    assert bits.tolist() == [[6457827717110365317, 3203168211198807973, 9817491932198370423]]


def test_uniforms_do_not_depend_on_how_they_are_asked_for():
    streams = np.array([1, 2], dtype=np.uint64)
    whole = uniforms(streams, 0, 10)
    np.testing.assert_array_equal(whole[:, 4:7], uniforms(streams, 4, 3))
    np.testing.assert_array_equal(whole[1:], uniforms(streams[1:], 0, 10))
    assert ((whole >= 0) & (whole < 1)).all()


def test_seeds_are_stable_and_tell_their_parts_apart():
    assert sample_seed(0, "rollout", 1, 2) == sample_seed(0, "rollout", 1, 2) < 2**63
    assert sample_seed(0, 1, 12) != sample_seed(0, 11, 2)


@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_greedy_text_is_that_of_the_library(model, prompt):
    [[completion]] = TorchSampler(model, EOS).generate([prompt], [[0]], Sampling(temperature=0, max_tokens=20))
    expected = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=EOS, pad_token_id=0
    )
    assert completion.token_ids == expected[0, len(prompt) :].tolist()


def test_greedy_text_in_a_padded_batch_is_that_of_each_prompt_alone(model):
    sampler, sampling = TorchSampler(model, EOS), Sampling(temperature=0, max_tokens=20)
    together = ids(sampler.generate(PROMPTS, seeds(1), sampling))
    assert together == [ids(sampler.generate([prompt], [[0]], sampling))[0] for prompt in PROMPTS]


def test_a_row_does_not_depend_on_its_batch(model):
    sampling = Sampling(max_tokens=30)
    together = ids(TorchSampler(model, EOS).generate(PROMPTS, seeds(4), sampling))
    for budget in (1, 200):
        assert ids(TorchSampler(model, EOS, max_batch_tokens=budget).generate(PROMPTS, seeds(4), sampling)) == together
    backwards = TorchSampler(model, EOS).generate(PROMPTS[::-1], seeds(4)[::-1], sampling)
    assert ids(backwards)[::-1] == together


def test_compaction_changes_nothing_but_the_work(model):
    sampler, sampling = TorchSampler(model, EOS), Sampling(max_tokens=40)
    compacted = sampler.generate(PROMPTS, seeds(8), sampling)
    sampler.compacts = False
    plain = sampler.generate(PROMPTS, seeds(8), sampling)
    assert ids(plain) == ids(compacted)
    for ours, theirs in zip(sum(compacted, []), sum(plain, []), strict=True):
        assert ours.stop_reason == theirs.stop_reason
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_both_decoders_draw_the_same(model, monkeypatch):
    assert decoders.is_direct(model)
    sampling = Sampling(max_tokens=100)
    direct = TorchSampler(model, EOS).generate(PROMPTS, seeds(4), sampling)
    monkeypatch.setattr(torch_sampler, "make_decoder", decoders.LibraryDecoder)
    library = TorchSampler(model, EOS).generate(PROMPTS, seeds(4), sampling)
    assert ids(direct) == ids(library)
    for ours, theirs in zip(sum(direct, []), sum(library, []), strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma2ForCausalLM"])
def test_other_architectures_agree_with_the_library(architecture):
    import transformers

    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    config = config_class(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, max_position_embeddings=64, bos_token_id=None,
        eos_token_id=2, pad_token_id=0, initializer_range=0.3, attention_bias=True,
        **({"sliding_window": 8} if architecture == "Gemma2ForCausalLM" else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    other = getattr(transformers, architecture)(config).eval()
    sampler, sampling = TorchSampler(other, EOS), Sampling(temperature=0, max_tokens=20)
    together = ids(sampler.generate(PROMPTS, seeds(1), sampling))
    for prompt, found in zip(PROMPTS, together, strict=True):
        expected = other.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=EOS, pad_token_id=0
        )
        assert found[0] == expected[0, len(prompt) :].tolist()


def test_the_same_seed_draws_the_same_and_another_seed_something_else(model):
    sampler, sampling = TorchSampler(model, EOS), Sampling(max_tokens=30)
    [[first, again, other]] = sampler.generate([PROMPTS[0]], [[7, 7, 8]], sampling)
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_logprobs_are_those_of_the_untruncated_scaled_distribution(model):
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=10, max_tokens=12)
    [[completion]] = TorchSampler(model, EOS).generate([PROMPTS[1]], [[3]], sampling)
    sequence = torch.tensor([[*PROMPTS[1], *completion.token_ids]])
    with torch.no_grad():
        logprobs = (model(sequence).logits[0, len(PROMPTS[1]) - 1 : -1] / 0.7).log_softmax(-1)
    expected = logprobs[torch.arange(len(completion.token_ids)), torch.tensor(completion.token_ids)]
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_completion_ends_with_any_end_token_and_keeps_it(model):
    answers = sum(TorchSampler(model, EOS).generate(PROMPTS, seeds(16), Sampling(max_tokens=25)), [])
    assert {completion.stop_reason for completion in answers} == {"eos", "length"}
    for completion in answers:
        assert len(completion.token_ids) == len(completion.logprobs)
        assert not set(completion.token_ids[:-1]) & set(EOS)
        assert (completion.token_ids[-1] in EOS) == (completion.stop_reason == "eos")
        assert completion.stop_reason == "eos" or len(completion.token_ids) == 25
    assert len({completion.token_ids[-1] for completion in answers if completion.stop_reason == "eos"}) > 1


def test_frequencies_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    numbers = torch.from_numpy(uniforms(np.arange(20000, dtype=np.uint64), 0, 1)[:, 0])
    tokens, _ = draw_tokens(probabilities.log().expand(20000, -1), numbers, Sampling(max_tokens=1))
    frequencies = torch.bincount(tokens, minlength=4) / 20000
    # Five standard errors of the largest share.
    torch.testing.assert_close(frequencies, probabilities, atol=5 * (0.25 / 20000) ** 0.5, rtol=0)


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.79}, {0, 1}),
        ({"top_p": 0.81}, {0, 1, 2}),
        # Among the two tokens that top-k keeps the first has a share of 0.625.
        ({"top_k": 2, "top_p": 0.6}, {0}),
        ({}, {0, 1, 2, 3}),
    ],
)
def test_truncation_restricts_the_support(options, support):
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    numbers = torch.linspace(0, 1 - 1e-9, 2001, dtype=torch.float64)
    tokens, logprobs = draw_tokens(probabilities.log().expand(2001, -1), numbers, Sampling(max_tokens=1, **options))
    assert set(tokens.tolist()) == support
    torch.testing.assert_close(logprobs.exp(), probabilities[tokens])


def test_progress_counts_every_completion(model):
    counts = []
    answers = TorchSampler(model, EOS, max_batch_tokens=300).generate(
        PROMPTS, seeds(5), Sampling(max_tokens=30), lambda *count: counts.append(count)
    )
    assert sum(finished for finished, _ in counts) == 5 * len(PROMPTS)
    assert sum(tokens for _, tokens in counts) == sum(len(c.token_ids) for c in sum(answers, []))


def test_prompts_left_out_change_nothing_for_the_others(model):
    sampler, sampling = TorchSampler(model, EOS, max_batch_tokens=300), Sampling(max_tokens=30)
    whole = dict(sampler.stream(PROMPTS, seeds(5), sampling))
    assert set(whole) == set(range(len(PROMPTS)))
    for done in ({0}, {1, 2}, {0, 1, 3}, set(range(len(PROMPTS)))):
        rest = dict(sampler.stream(PROMPTS, seeds(5), sampling, done=done))
        # Equal in every bit, log-probs too: the others are in the batches they would have been in.
        assert rest == {index: group for index, group in whole.items() if index not in done}


def test_a_batch_that_is_done_is_not_run(model):
    def count_calls(done):
        calls = []
        list(TorchSampler(model, EOS, max_batch_tokens=1).stream(
            PROMPTS, seeds(1), Sampling(max_tokens=5), done=done, on_progress=lambda *count: calls.append(count)
        ))  # fmt: skip
        return sum(finished for finished, _ in calls)

    assert [count_calls(done) for done in (set(), {0}, {0, 1, 2, 3})] == [4, 3, 0]


def test_prompts_that_do_not_fit_are_refused(model):
    sampler = TorchSampler(model, EOS)
    with pytest.raises(UserError, match="256 positions"):
        sampler.generate([[5] * 200], [[0]], Sampling(max_tokens=60))
    with pytest.raises(UserError, match="no tokens"):
        sampler.generate([[]], [[0]], Sampling(max_tokens=60))


def test_sampling_leaves_the_model_in_training_mode(model):
    model.train()
    TorchSampler(model, EOS).generate([PROMPTS[0]], [[0]], Sampling(max_tokens=3))
    assert model.training
    model.eval()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_logits_that_are_not_finite_are_one_error(temperature):
    """At temperature 0 they were answers of the first token, above it an index error."""
    broken = tiny_model(VOCABULARY)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    sampling = Sampling(temperature=temperature, max_tokens=5)
    with pytest.raises(UserError, match=r"token 1 of 8 completions: the model's logits are not finite"):
        TorchSampler(broken, EOS).generate(PROMPTS, seeds(2), sampling)


def test_log_probs_of_vllm_that_are_not_numbers_are_the_same_error():
    sampler = object.__new__(VllmSampler)
    sampler.eos_token_ids = EOS
    output = SimpleNamespace(
        token_ids=[3, 4],
        logprobs=[{3: SimpleNamespace(logprob=-0.5)}, {4: SimpleNamespace(logprob=float("nan"))}],
        finish_reason="length",
    )
    with pytest.raises(UserError, match="vLLM: the model's logits are not finite"):
        sampler._completion(SimpleNamespace(outputs=[output]))
