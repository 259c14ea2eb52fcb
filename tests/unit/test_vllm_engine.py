"""vLLM itself (its CPU build) against the torch sampler and the trainer, on small random models of every family."""

from __future__ import annotations

import importlib.util
from itertools import takewhile

import pytest
import torch
from scipy.stats import chisquare

from chat_tokenizers import tokenizer
from model_families import FAMILIES, family_model, save_family
from selfdistill.generation import weights
from selfdistill.generation.base import sample_seed
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.generation.vllm_sampler import VllmSampler
from selfdistill.prompts import chat, encode_chat
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.network import Network, completion_logprobs, pack
from selfdistill.training.weights import plain_weights

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make test-vllm)"),
]

#: Largest difference of two log-probs of one token that is put down to rounding (float32).
TOLERANCE = 1e-4
QUESTIONS = ["What is 1+1?", "Wait, what is the value of {x}?", "the solution " * 9, "What is 1+1?"]
TOY_QUESTIONS = ["which mod 7 = r0 : A 6 B 3 C 0 D 8", "which mod 5 = r1 : A 6 B 3"]


class Case:
    """One family: the model, its folder, and an engine over it."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.model = save_family(name, folder)
        self.sampler = VllmSampler.load(folder, StageRuntime(), is_colocated=True)
        self.torch = TorchSampler(self.model, self.sampler.eos_token_ids)
        questions = TOY_QUESTIONS if name == "toy" else QUESTIONS
        self.prompts = [encode_chat(tokenizer(name), chat(question, None), None) for question in questions]

    def seeds(self, samples):
        return [[sample_seed(0, row, sample) for sample in range(samples)] for row in range(len(self.prompts))]

    def reset(self):
        self.sampler.update_weights(lambda: plain_weights(self.model))


@pytest.fixture(scope="module", params=[*FAMILIES, "toy"])
def case(request, tmp_path_factory):
    made = Case(request.param, tmp_path_factory.mktemp("model") / request.param)
    yield made
    made.sampler.close()


def flat(answers):
    return [completion for group in answers for completion in group]


def ids(answers):
    return [[completion.token_ids for completion in group] for group in answers]


def trainer_logprobs(model, prompts, answers, temperature=1.0):
    """Log-probs of every completion's tokens as training computes them."""
    pairs = [(prompt, c.token_ids) for prompt, group in zip(prompts, answers, strict=True) for c in group]
    packed = pack([prompt for prompt, _ in pairs], [tokens for _, tokens in pairs], torch.device("cpu"))
    return completion_logprobs(Network(model, temperature=temperature), packed)


def sampler_logprobs(answers):
    return torch.tensor([logprob for completion in flat(answers) for logprob in completion.logprobs])


def top_two_gap(model, sequence):
    """How much likelier the most likely next token is than the second, in nats."""
    with torch.no_grad():
        first, second = model(torch.tensor([sequence])).logits[0, -1].log_softmax(-1).topk(2).values.tolist()
    return first - second


def test_greedy_ids_are_those_of_the_torch_sampler_up_to_a_tie(case):
    sampling = Sampling(temperature=0, max_tokens=48)
    ours, theirs = (ids(s.generate(case.prompts, case.seeds(1), sampling)) for s in (case.torch, case.sampler))
    compared = 0
    for prompt, [expected], [found] in zip(case.prompts, ours, theirs, strict=True):
        shared = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(expected, found, strict=False))]
        compared += len(shared)
        if expected != found:
            assert top_two_gap(case.model, [*prompt, *shared]) < TOLERANCE
    assert compared > 24 * len(case.prompts)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_sampled_tokens_are_the_trainers(case, temperature):
    answers = case.sampler.generate(case.prompts, case.seeds(4), Sampling(temperature=temperature, max_tokens=40))
    expected = trainer_logprobs(case.model, case.prompts, answers, temperature)
    torch.testing.assert_close(sampler_logprobs(answers), expected, atol=TOLERANCE, rtol=0)


def test_a_seed_draws_the_same_whatever_else_is_in_the_engine(case):
    sampling = Sampling(max_tokens=30)
    together = ids(case.sampler.generate(case.prompts, case.seeds(4), sampling))
    alone = ids(case.sampler.generate(case.prompts[1:2], case.seeds(4)[1:2], sampling))
    backwards = ids(case.sampler.generate(case.prompts[::-1], case.seeds(4)[::-1], sampling))
    assert alone == together[1:2]
    assert backwards[::-1] == together
    assert len({tuple(tokens) for tokens in together[0]}) == 4


def test_other_seeds_draw_from_the_distribution(case):
    count = 1500
    drawn = case.sampler.generate(case.prompts[:1], [[sample_seed(1, s) for s in range(count)]], Sampling(max_tokens=1))
    first = torch.tensor([completion.token_ids[0] for completion in drawn[0]])
    with torch.no_grad():
        expected = case.model(torch.tensor(case.prompts[:1])).logits[0, -1].softmax(-1)
    counts = torch.bincount(first, minlength=len(expected)).double()
    # Rare tokens are counted together: the statistic needs some of each.
    is_frequent = expected * count >= 5
    observed = [*counts[is_frequent].tolist(), counts[~is_frequent].sum().item()]
    shares = expected.double()[is_frequent]
    wanted = [*(shares * count).tolist(), (1 - shares.sum()).item() * count]
    assert chisquare(observed, wanted).pvalue > 1e-4


def test_completions_end_at_an_end_token_or_at_the_limit(case):
    answers = flat(case.sampler.generate(case.prompts, case.seeds(24), Sampling(max_tokens=90)))
    assert {completion.stop_reason for completion in answers} == {"eos", "length"}
    ends = set(case.sampler.eos_token_ids)
    for completion in answers:
        assert len(completion.logprobs) == len(completion.token_ids)
        assert not ends & set(completion.token_ids[:-1])
        assert (completion.token_ids[-1] in ends) == (completion.stop_reason == "eos")
        assert completion.stop_reason == "eos" or len(completion.token_ids) == 90
    seen = {completion.token_ids[-1] for completion in answers if completion.stop_reason == "eos"}
    # Qwen3 ends at <|im_end|> and at <|endoftext|>.
    assert seen == ends and len(ends) == (2 if case.name == "qwen3" else 1)


def count_cached(case, prompts, seeds):
    before = case.sampler.prompt_tokens, case.sampler.cached_tokens
    case.sampler.generate(prompts, seeds, Sampling(max_tokens=1))
    return case.sampler.prompt_tokens - before[0], case.sampler.cached_tokens - before[1]


def test_samples_of_a_prompt_share_its_prefill_until_the_weights_change(case):
    case.reset()
    long = [(case.prompts[0] * 40)[:300]]
    asked, cached = count_cached(case, long, [[1, 2, 3, 4]])
    assert asked == 1200
    # Whole blocks only, and the last token is always computed.
    assert 3 * 256 <= cached <= 3 * 299
    assert count_cached(case, long, [[5]])[1] >= 256
    case.reset()
    assert count_cached(case, long, [[5]])[1] == 0


def new_policy(case, which):
    """The same model with all its weights changed, or only those that a copy could miss."""
    if which == "all":
        return family_model(case.name, seed=1)
    model = family_model(case.name)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.copy_(head.flip(0))
    return model


@pytest.mark.parametrize("way", ["from memory", "from a folder"])
@pytest.mark.parametrize("which", ["all", "head"])
def test_the_engine_samples_from_new_weights_and_from_nothing_else(case, tmp_path, which, way):
    """The tied heads of Qwen3 and the toy among them: a head that is left behind gives other log-probs."""
    changed, sampling = new_policy(case, which), Sampling(max_tokens=20)
    if way == "from memory":
        case.sampler.update_weights(lambda: plain_weights(changed))
    else:
        changed.save_pretrained(tmp_path)
        case.sampler.load_weights(tmp_path)
    try:
        answers = case.sampler.generate(case.prompts, case.seeds(2), sampling)
    finally:
        case.reset()
    found = sampler_logprobs(answers)
    torch.testing.assert_close(found, trainer_logprobs(changed, case.prompts, answers), atol=TOLERANCE, rtol=0)
    assert (found - trainer_logprobs(case.model, case.prompts, answers)).abs().mean() > 0.5
    again = case.sampler.generate(case.prompts, case.seeds(2), sampling)
    torch.testing.assert_close(
        sampler_logprobs(again), trainer_logprobs(case.model, case.prompts, again), atol=TOLERANCE, rtol=0
    )


def test_finished_prompts_are_streamed_and_may_be_left_out(case):
    counts = []
    stream = case.sampler.stream(
        case.prompts, case.seeds(3), Sampling(max_tokens=8), done={1}, on_progress=lambda *count: counts.append(count)
    )
    answers = dict(stream)
    assert set(answers) == set(range(len(case.prompts))) - {1}
    assert sum(finished for finished, _ in counts) == 3 * len(answers)
    assert sum(tokens for _, tokens in counts) == sum(len(c.token_ids) for c in flat(answers.values()))


def test_an_interrupted_call_leaves_nothing_running(case):
    def stop(_finished, _tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.sampler.generate(case.prompts, case.seeds(3), Sampling(max_tokens=30), stop)
    assert not case.sampler.engine.llm_engine.has_unfinished_requests()
    case.reset()
    [[completion]] = case.sampler.generate(case.prompts[:1], [[0]], Sampling(max_tokens=5))
    assert 0 < len(completion.token_ids) <= 5


def test_prompts_that_do_not_fit_are_refused(case):
    with pytest.raises(UserError, match="positions"):
        case.sampler.generate([[5] * 1020], [[0]], Sampling(max_tokens=60))


def test_a_model_that_the_cpu_build_cannot_run_is_refused_at_the_start(tmp_path):
    save_family("qwen3", tmp_path, head_dim=16)
    with pytest.raises(UserError, match="attention heads of size 16.*engine: torch"):
        VllmSampler.load(tmp_path, StageRuntime())


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_an_engine_in_other_processes_gets_new_weights_too(tmp_path, monkeypatch, tensor_parallel):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    # A file for every tensor, as the weights of a large model come in several.
    monkeypatch.setattr(weights, "_FILE_BYTES", 1)
    model, prompts, seeds = save_family("qwen3", tmp_path), [[5, 6, 7], [8, 9]], [[1, 2], [3, 4]]
    sampler = VllmSampler.load(tmp_path, StageRuntime(tensor_parallel=tensor_parallel))
    try:
        for changed in (model, family_model("qwen3", seed=1)):
            sampler.update_weights(lambda changed=changed: plain_weights(changed))
            answers = sampler.generate(prompts, seeds, Sampling(max_tokens=10))
            expected = trainer_logprobs(changed, prompts, answers)
            torch.testing.assert_close(sampler_logprobs(answers), expected, atol=TOLERANCE, rtol=0)
    finally:
        sampler.close()
