"""The vLLM sampler against a stand-in engine: what it asks for, and how it reads the answers."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from selfdistill.generation.loading import load_sampler
from selfdistill.generation.vllm_sampler import VllmSampler
from selfdistill.schema.common import Sampling
from selfdistill.schema.errors import UserError
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training.weights import plain_weights
from tiny import tiny_model, tiny_tokenizer


class StandIn:
    """Answers a request a step, the last one first: its seed as tokens, ended by 2 for even seeds."""

    def __init__(self, **options):
        self.options, self.calls, self.weights = options, [], {}
        self.model_config = SimpleNamespace(max_model_len=64, get_head_size=lambda: 32)
        self.llm_engine = self
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(distributed_executor_backend="uni"),
            scheduler_config=SimpleNamespace(max_num_seqs=256),
            cache_config=SimpleNamespace(num_gpu_blocks=256, block_size=16),
        )
        self.waiting = []

    def add_request(self, name, request, parameters):
        self.calls.append(("add_request", request, parameters))
        self.waiting.append((name, request, parameters))
        return f"{name}-inside"

    def step(self):
        name, request, parameter = self.waiting.pop()
        ids = [parameter.seed, 2] if parameter.seed % 2 == 0 else [parameter.seed, 9]
        logprobs = [{token: SimpleNamespace(logprob=-float(token)), 77: SimpleNamespace(logprob=0.0)} for token in ids]
        sampled = SimpleNamespace(
            token_ids=tuple(ids), logprobs=logprobs, finish_reason="stop" if ids[-1] == 2 else "length"
        )
        asked = request["prompt_token_ids"]
        return [
            SimpleNamespace(
                request_id=name, finished=True, outputs=[sampled], prompt_token_ids=asked, num_cached_tokens=0
            )
        ]

    def abort_request(self, names, internal):
        self.calls.append(("abort_request", *names))

    def apply_model(self, change):
        self.calls.append(("apply_model",))

    def collective_rpc(self, method, kwargs):
        self.calls.append((method,))
        self.weights = dict(kwargs["weights_iterator"])

    def reset_prefix_cache(self):
        self.calls.append(("reset_prefix_cache",))
        return True

    def sleep(self, level):
        self.calls.append(("sleep", level))

    def wake_up(self, tags):
        self.calls.append(("wake_up", *tags))


@pytest.fixture
def vllm(monkeypatch):
    names = ("vllm", "vllm.inputs", "vllm.sampling_params", "vllm.v1.attention.backends.cpu_attn")
    modules = {name: types.ModuleType(name) for name in names}
    modules["vllm"].LLM, modules["vllm"].SamplingParams = StandIn, SimpleNamespace
    modules["vllm.inputs"].TokensPrompt = dict
    modules["vllm.sampling_params"].RequestOutputKind = SimpleNamespace(FINAL_ONLY="final only")
    modules["vllm.v1.attention.backends.cpu_attn"].CPUAttentionBackend = SimpleNamespace(
        get_supported_head_sizes=lambda: [32]
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def test_ids_go_in_and_come_out_with_one_seed_a_request(vllm):
    sampler = VllmSampler(StandIn(), [2])
    counts = []
    sampling = Sampling(temperature=0.6, top_p=0.95, max_tokens=5)
    answers = sampler.generate([[5, 6], [7]], [[10, 11], [12]], sampling, lambda *count: counts.append(count))
    assert [[c.token_ids for c in group] for group in answers] == [[[10, 2], [11, 9]], [[12, 2]]]
    assert answers[0][0].logprobs == [-10.0, -2.0]
    assert [c.stop_reason for c in answers[0]] == ["eos", "length"]
    _, requests, parameters = zip(*sampler.engine.calls, strict=True)
    assert [request["prompt_token_ids"] for request in requests] == [[5, 6], [5, 6], [7]]
    assert [parameter.seed for parameter in parameters] == [10, 11, 12]
    assert (parameters[0].temperature, parameters[0].top_p, parameters[0].max_tokens) == (0.6, 0.95, 5)
    assert (parameters[0].logprobs, parameters[0].stop_token_ids, parameters[0].n) == (0, [2], 1)
    assert counts == [(1, 2)] * 3


def test_banned_tokens_are_a_bias_that_leaves_no_probability(vllm):
    sampler = VllmSampler(StandIn(), [2])
    sampler.generate([[5]], [[10]], Sampling(max_tokens=5))
    sampler.banned = (7, 9)
    sampler.generate([[5]], [[10]], Sampling(max_tokens=5))
    plain, masked = (parameters.logit_bias for _, _, parameters in sampler.engine.calls)
    assert plain is None and masked.keys() == {7, 9}
    logits = torch.zeros(12)
    logits[list(masked)] = 80.0 + torch.tensor(list(masked.values()))
    assert logits.softmax(-1)[list(masked)].tolist() == [0.0, 0.0]


def test_a_prompt_is_handed_on_when_its_last_sample_is_there(vllm):
    sampler = VllmSampler(StandIn(), [2])
    stream = sampler.stream([[5], [6], [7]], [[10, 11], [12], [14, 15]], Sampling(max_tokens=5), done={1})
    index, group = next(stream)
    assert index == 2 and [c.token_ids for c in group] == [[14, 2], [15, 9]]
    assert len(sampler.engine.waiting) == 2
    stream.close()
    assert sampler.engine.calls[-1] == ("abort_request", "0-0-inside", "0-1-inside")


def test_prompts_are_taken_from_the_queue_as_there_is_room_for_them(vllm):
    sampler = VllmSampler(StandIn(), [2])
    sampler.engine.vllm_config.scheduler_config.max_num_seqs = 3
    taken = []

    def queue():
        for place in range(6):
            taken.append(place)
            yield [place]

    seeds = [[10 * place, 10 * place + 1] for place in range(6)]
    stream = sampler.stream_portions(queue(), [[5]] * 6, seeds, Sampling(max_tokens=5), done={1, 4})
    place, group = next(stream)
    # Two completions of place 0 and two of 2 ran: no room for more.
    assert (place, taken) == (2, [0, 1, 2])
    assert [c.token_ids for c in group] == [[20, 2], [21, 9]]
    assert sorted(place for place, _ in stream) == [0, 3, 5]
    assert taken == [0, 1, 2, 3, 4, 5]


def test_the_cache_limits_how_many_run(vllm):
    sampler = VllmSampler(StandIn(), [2])
    assert sampler._capacity() == 2 * 256 * 16 // 64
    sampler.engine.vllm_config.cache_config.num_gpu_blocks = 1
    assert sampler._capacity() == 1


def test_weights_include_the_tied_head_and_empty_the_prefix_cache(vllm):
    sampler, model = VllmSampler(StandIn(), [2]), tiny_model(40)
    sampler.update_weights(lambda: plain_weights(model))
    torch.testing.assert_close(sampler.engine.weights["lm_head.weight"], model.model.embed_tokens.weight.detach())
    assert set(sampler.engine.weights) == set(dict(model.state_dict()))
    assert sampler.engine.calls == [("reload_weights",), ("reset_prefix_cache",)]


def test_a_colocated_engine_sleeps_while_others_use_the_memory(vllm):
    sampler = VllmSampler(StandIn(), [2], sleeps=True)
    sampler.generate([[5]], [[10]], Sampling(max_tokens=5))
    sampler.update_weights(lambda: plain_weights(tiny_model(40)))
    sampler.generate([[5]], [[10]], Sampling(max_tokens=5))
    assert [call[0] if call[0] == "add_request" else call for call in sampler.engine.calls] == [
        "add_request", ("sleep", 1), ("wake_up", "weights"), ("reload_weights",), ("reset_prefix_cache",),
        ("wake_up", "kv_cache"), "add_request", ("sleep", 1),
    ]  # fmt: skip


def test_an_engine_that_took_weights_sleeps_again_where_nothing_is_left_to_sample(vllm):
    """A resumed step whose groups are all kept, or a rank that finds the queue empty."""
    sampler, settings = VllmSampler(StandIn(), [2], sleeps=True), Sampling(max_tokens=5)
    sampler.sleep()
    for done, portions in (({0}, [[0]]), (set(), [])):
        sampler.update_weights(lambda: plain_weights(tiny_model(40)))
        assert list(sampler.stream_portions(iter(portions), [[5]], [[10]], settings, done=done)) == []
        assert sampler.asleep == {"weights", "kv_cache"}
        assert sampler.engine.calls[-1] == ("sleep", 1)


def test_loading_reads_the_end_tokens_of_the_folder(vllm, tmp_path):
    from transformers import GenerationConfig

    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model(40).config.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(tmp_path)
    sampler = VllmSampler.load(tmp_path, StageRuntime(), max_positions=100)
    assert sampler.eos_token_ids == [2, 7]
    assert sampler.engine.options["dtype"] == "float32"
    assert sampler.engine.options["logprobs_mode"] == "processed_logprobs"
    assert sampler.engine.options["max_model_len"] == 100


def test_engines_beside_each_other_have_a_gpu_each(vllm, tmp_path, monkeypatch):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model(40).config.save_pretrained(tmp_path)
    runtime = StageRuntime(device="cuda", gpu_memory_fraction=0.4)
    alone = VllmSampler.load(tmp_path, runtime, is_colocated=True).engine.options
    assert (alone["distributed_executor_backend"], alone["enable_sleep_mode"]) == (None, True)
    assert (alone["gpu_memory_utilization"], alone["max_model_len"]) == (0.4, 256)
    monkeypatch.setenv("WORLD_SIZE", "4")
    several = VllmSampler.load(tmp_path, runtime, is_colocated=True).engine.options
    assert several["distributed_executor_backend"] == "external_launcher"


def test_options_of_the_engine_are_passed_on_and_those_that_change_results_refused(vllm, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model(40).config.save_pretrained(tmp_path)
    runtime = StageRuntime(device="cuda", engine_options={"max_num_seqs": 17})
    assert VllmSampler.load(tmp_path, runtime).engine.options["max_num_seqs"] == 17
    for name in ("kv_cache_dtype", "quantization", "max_model_len", "enable_prefix_caching"):
        with pytest.raises(ValueError, match=f"{name}: not an option of the machine"):
            StageRuntime(engine_options={name: "fp8"})


def test_the_type_of_the_cache_reaches_the_engine_and_needs_a_gpu(vllm, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model(40).config.save_pretrained(tmp_path)
    gpu = StageRuntime(device="cuda")
    assert load_sampler(tmp_path, "vllm", gpu, max_positions=9).engine.options["kv_cache_dtype"] == "auto"
    sampler = load_sampler(tmp_path, "vllm", gpu, max_positions=9, kv_cache_dtype="fp8_e4m3")
    assert sampler.engine.options["kv_cache_dtype"] == "fp8_e4m3"
    with pytest.raises(UserError, match="kv_cache_dtype: fp8_e4m3 needs GPUs"):
        load_sampler(tmp_path, "vllm", StageRuntime(), max_positions=9, kv_cache_dtype="fp8_e4m3")


def test_what_the_engine_refuses_to_sample_with_is_one_line(vllm, monkeypatch):
    def refuse(**settings):
        raise ValueError(f"temperature must be at most 2, got {settings['temperature']}.")

    monkeypatch.setattr(sys.modules["vllm"], "SamplingParams", refuse)
    with pytest.raises(UserError, match="sampling: vLLM refuses it .temperature must be at most 2, got 2.5"):
        VllmSampler(StandIn(), [2]).generate([[5]], [[1]], Sampling(max_tokens=5, temperature=2.5))


def test_prompts_that_do_not_fit_are_refused(vllm):
    with pytest.raises(UserError, match="64 positions"):
        VllmSampler(StandIn(), [2]).generate([[5] * 60], [[0]], Sampling(max_tokens=5))


def test_without_vllm_the_error_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="engine: torch"):
        VllmSampler.load(Path("nowhere"), StageRuntime())
