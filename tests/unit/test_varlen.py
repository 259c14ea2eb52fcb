"""Sequences end to end in one row: what padded rows compute. torch's kernel needs a GPU, so a plain one stands for it.

The plain one takes exactly what the kernel takes; the kernel's own signature and shapes are checked without memory.
"""

from __future__ import annotations

import copy
import inspect
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AutoConfig, AutoModelForCausalLM

from model_families import family_model
from selfdistill.generation.torch_sampler import TorchSampler
from selfdistill.losses import compile_losses
from selfdistill.schema.common import Sampling
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import compilation, varlen, windows
from selfdistill.training.distributed import World
from selfdistill.training.network import Network, backward_through_head
from selfdistill.training.prefix import LEAST_TOKENS, can_share, hidden_after_prompt, read_prompt
from selfdistill.training.varlen import IMPLEMENTATION, choose_attention, fault
from tiny import tiny_model


def plain(
    query, key, value, starts, starts_k, longest, longest_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """As `varlen_attn`, one sequence at a time, by a mask of all pairs."""
    assert enable_gqa
    found = []
    for (first, last), (first_k, last_k) in zip(pairwise(starts.tolist()), pairwise(starts_k.tolist()), strict=True):
        # The kernel lets the last query see the last key, wherever the first one stands.
        place = torch.arange(last - first) + (last_k - first_k) - (last - first)
        back = place[:, None] - torch.arange(last_k - first_k)[None]
        left, right = (last_k if side < 0 else side for side in window_size)
        seen = (back <= left) & (-back <= right)
        whose = ((query, first, last), (key, first_k, last_k), (value, first_k, last_k))
        tokens = (tensor[start:end].transpose(0, 1) for tensor, start, end in whose)
        found.append(functional.scaled_dot_product_attention(*tokens, attn_mask=seen, scale=scale, enable_gqa=True))
    return torch.cat(found, dim=1).transpose(0, 1)


@pytest.fixture
def calls(monkeypatch):
    """The kernel's calls, each one accepted by the signature of the real one; `plain` answers them."""
    found = []

    def recorded(*arguments, **options):
        found.append(inspect.signature(varlen_attn).bind(*arguments, **options).arguments)
        return plain(*arguments, **options)

    monkeypatch.setattr(varlen, "varlen_attn", recorded)
    return found


def end_to_end(model):
    found = copy.deepcopy(model)
    found.set_attn_implementation(IMPLEMENTATION)
    return found


def sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randint(5, 40, (3 + length,), generator=generator).tolist() for length in lengths]
    return [ids[:3] for ids in draw], [ids[3:] for ids in draw]


def gradients(model, lengths):
    """Hidden states of the completions, and gradients."""
    network = Network(model)
    model.zero_grad()
    hidden = network.hidden(network.pack(*sequences(lengths)))
    backward_through_head(network, hidden, lambda part, logits: logits.log_softmax(-1)[:, 7].sum())
    return hidden.detach(), [parameter.grad for parameter in model.parameters()]


def small(architecture, **changes):
    settings = {
        "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "initializer_range": 0.2,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if architecture in ("mistral", "olmo3", "qwen2", "qwen3"):
        settings |= {"sliding_window": 16}
    if architecture in ("olmo3", "qwen2", "qwen3"):
        settings |= {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**settings, **changes})
    return AutoModelForCausalLM.from_config(config).double()


@pytest.mark.parametrize("architecture", sorted(varlen.ARCHITECTURES))
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[9, 4], [40, 3, 21, 60]])
def test_hidden_states_and_gradients_are_those_of_padded_rows(calls, architecture, kv_heads, lengths):
    model = small(architecture, num_key_value_heads=kv_heads)
    assert varlen._is_known(model)
    expected, expected_gradients = gradients(model, lengths)
    assert calls == []
    found, found_gradients = gradients(end_to_end(model), lengths)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    windowed = architecture in ("mistral", "olmo3", "qwen2", "qwen3")
    kinds = {call["window_size"] for call in calls}
    assert kinds == ({(15, 0)} if architecture == "mistral" else {(15, 0), (-1, 0)} if windowed else {(-1, 0)})


def test_the_kernel_gets_what_it_asks_for(calls):
    """Tokens first, one boundary more than sequences, 32-bit boundaries; every layer is a call."""
    gradients(end_to_end(small("qwen3")), [9, 4, 30])
    assert len(calls) == 2
    for call in calls:
        assert call["query"].shape == (11 + 6 + 32, 4, 16) and call["key"].shape == call["value"].shape == (49, 2, 16)
        assert call["cu_seq_q"].dtype == torch.int32 and call["cu_seq_q"].tolist() == [0, 11, 17, 49]
        assert (call["max_q"], call["max_k"]) == (32, 32)
        assert all(call[name].stride(-1) == 1 for name in ("query", "key", "value"))


def test_under_autocast_the_kernel_gets_16_bit_numbers(calls):
    """The norms of queries and keys leave float32; the kernel takes no such numbers."""
    model = end_to_end(small("qwen3").float())
    network = Network(model, compute_dtype=torch.bfloat16)
    hidden = network.hidden(network.pack(*sequences([9, 4])))
    assert {call[name].dtype for call in calls for name in ("query", "key", "value")} == {torch.bfloat16}
    reference = Network(small("qwen3").float(), compute_dtype=torch.bfloat16)
    expected = reference.hidden(reference.pack(*sequences([9, 4])))
    assert float(((hidden - expected).norm() / expected.norm()).detach()) < 2e-2


def test_recomputed_layers_attend_alike(calls):
    """Gradient checkpointing, as always on a GPU."""
    model = end_to_end(small("olmo3")).train()
    _, expected = gradients(model, [30, 4])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    count = len(calls)
    _, found = gradients(model, [30, 4])
    assert len(calls) == 3 * count
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_real_kernel_accepts_the_calls_and_their_gradients():
    """On the meta device: its schema and shapes, forwards and backwards, without numbers."""
    tokens = [
        torch.empty(49, heads, 128, device="meta", dtype=torch.bfloat16, requires_grad=True) for heads in (8, 2, 2)
    ]
    where = varlen.Boundaries(torch.empty(4, device="meta", dtype=torch.int32), 32)
    for window in (None, 16):
        output = varlen._attend(*tokens, where, window, 0.1)
        assert output.shape == tokens[0].shape
        found = torch.autograd.grad(output.sum(), tokens)
        assert [one.shape for one in found] == [one.shape for one in tokens]


def test_a_padded_batch_a_cache_and_one_sequence_are_computed_as_before(calls):
    model = family_model("olmo3_instruct")
    chosen = end_to_end(model)
    windows.attend_in_windows(model)
    ids = torch.randint(5, 90, (2, 40))
    for arguments in ({}, {"attention_mask": torch.ones_like(ids).index_fill_(1, torch.arange(5), 0)}):
        assert torch.equal(chosen(ids, **arguments).logits, model(ids, **arguments).logits)
    assert torch.equal(chosen(ids[:1]).logits, model(ids[:1]).logits)
    prompts, seeds = [[5, 6, 7], list(range(10, 50)), [8] * 17], [[1, 2], [3, 4], [5, 6]]
    found, expected = (
        TorchSampler(one, [2]).generate(prompts, seeds, Sampling(max_tokens=40)) for one in (chosen, model)
    )
    assert [[one.token_ids for one in group] for group in found] == [
        [one.token_ids for one in group] for group in expected
    ]
    assert calls == []


def test_a_long_prompt_of_a_teacher_is_still_read_once(calls):
    model = tiny_model(64)
    chosen = end_to_end(model)
    prompt, completions = [5 + place % 50 for place in range(LEAST_TOKENS)], [[7, 8, 9], [10] * 5]
    assert Network(chosen).unpadded and can_share(Network(chosen))
    with torch.no_grad():
        found = hidden_after_prompt(Network(chosen), prompt, completions, read_prompt(Network(chosen), prompt))
        padded = Network(model)
        expected = padded.hidden(padded.pack([prompt] * 2, completions))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Two rows of 6 and as many keys more as the prompt has before its last token; no mask of all pairs.
    assert calls and all(call["cu_seq_q"].tolist() == [0, 5, 10] for call in calls)
    assert all(call["cu_seq_k"].tolist() == [0, LEAST_TOKENS + 4, 2 * LEAST_TOKENS + 8] for call in calls)


def gpu(any_rank=False):
    """A rank that says it has a GPU."""
    return SimpleNamespace(device=torch.device("cuda"), any=lambda flag: flag or any_rank)


def test_the_trial_accepts_a_kernel_that_is_right_and_rejects_others(monkeypatch, calls):
    device = torch.device("cpu")
    assert fault(4, 2, 64, 16, device) is None
    assert [call["window_size"] for call in calls[:2]] in ([(-1, 0), (15, 0)], [(15, 0), (-1, 0)])

    def leaks(query, key, value, starts, *rest, **options):
        whole = torch.tensor([0, len(query)], dtype=torch.int32)
        return plain(query, key, value, whole, whole, *rest[1:], **options)

    def at_the_top(query, key, value, starts, starts_k, *rest, **options):
        """The first query sees the first key: right without a cache alone."""
        if starts is starts_k:
            return plain(query, key, value, starts, starts_k, *rest, **options)
        rows, length = len(starts) - 1, int(starts[1])
        shown = (tensor.unflatten(0, (rows, -1))[:, :length].flatten(0, 1) for tensor in (key, value))
        return plain(query, *shown, starts, starts, rest[0], rest[0], **options)

    monkeypatch.setattr(varlen, "varlen_attn", at_the_top)
    assert "differ" in fault(4, 2, 64, None, device)
    monkeypatch.setattr(varlen, "varlen_attn", leaks)
    assert "differ" in fault(4, 2, 64, None, device)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **o: plain(*a, **{**o, "window_size": (-1, 0)}))
    assert fault(4, 2, 64, None, device) is None and "differ" in fault(4, 2, 64, 16, device)
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k: query)
    assert "unexpected keyword" in fault(4, 2, 64, None, device)


def test_the_real_kernel_does_not_run_on_a_cpu_and_says_so():
    assert "CPU" in fault(4, 2, 64, None, torch.device("cpu"))


def test_it_is_chosen_where_everything_fits(monkeypatch, caplog):
    found = {"fault": None}
    monkeypatch.setattr(varlen, "fault", lambda *of: found.update(of=of) or found["fault"])

    def chosen(model, dtype=torch.bfloat16, world=None):
        choose_attention(model, dtype, world or gpu())
        return model.config._attn_implementation

    assert chosen(small("qwen3")) == IMPLEMENTATION
    assert found["of"] == (4, 2, 16, 16, torch.device("cuda"))
    assert chosen(small("llama")) == IMPLEMENTATION and found["of"][3] is None
    assert chosen(small("qwen3"), torch.float32) == windows.IMPLEMENTATION
    assert chosen(small("llama"), world=World("cpu")) == "sdpa"
    assert chosen(small("llama", attention_dropout=0.1)) == "sdpa"
    assert chosen(small("gemma2")) == "sdpa"
    assert not caplog.text
    assert chosen(small("llama"), world=gpu(any_rank=True)) == "sdpa"
    found["fault"] = "no kernel image"
    assert chosen(small("qwen3")) == windows.IMPLEMENTATION
    assert "no kernel image" in caplog.text


def test_a_saved_model_says_nothing_of_it(tmp_path):
    end_to_end(small("llama")).save_pretrained(tmp_path)
    assert IMPLEMENTATION not in Path(tmp_path, "config.json").read_text()


def test_the_trial_of_the_compiler_has_the_attention_that_training_chose(monkeypatch):
    """Compiled layers and sequences end to end are the default pair on a GPU."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    seen = []

    @torch.compiler.disable
    def seen_by(query, key, value, starts, *rest, **options):
        seen.append(starts.tolist())
        return plain(query, key, value, starts, *rest, **options)

    def refuses(*_, **__):
        raise RuntimeError("not under a compiler")

    monkeypatch.setattr(varlen, "varlen_attn", seen_by)
    assert compilation.choose_compilation(StageRuntime(compile=True), World("cpu"), torch.float32, IMPLEMENTATION)
    compile_losses("cpu", None)
    assert seen and all(starts == [0, 7, 14] for starts in seen)
    monkeypatch.setattr(varlen, "varlen_attn", refuses)
    assert "not under a compiler" in compilation.fault(torch.device("cpu"), torch.float32, None, IMPLEMENTATION)


def test_the_gpu_check_compares_the_kernel_with_padded_rows(monkeypatch, calls, project_root):
    """Its logic, with the plain kernel; and a kernel that is wrong fails it."""
    monkeypatch.syspath_prepend(str(project_root / "benchmarks"))
    import gpu_check
    import gpu_check_attention

    case = gpu_check.case_of("cpu", small=True)
    lines = list(gpu_check_attention.attention(case))
    assert len(lines) == 4 and not any(line.failed for line in lines) and calls
    monkeypatch.setattr(varlen, "fault", lambda *_: None)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **o: plain(*a, **{**o, "window_size": (0, 0)}))
    assert any(line.failed for line in gpu_check_attention.attention(case))


@pytest.mark.parametrize("problem", [None, "no kernel image"])
def test_doctor_names_the_layout(monkeypatch, problem):
    from selfdistill.cli import checks

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (line,) = checks.attention()
    assert line.state == "ok" and "no GPU here" in line.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(varlen, "fault", lambda *_: problem)
    (line,) = checks.attention()
    assert (line.state, "end to end" in line.text) == (("ok", True) if problem is None else ("warn", False))
    assert problem is None or problem in line.text
