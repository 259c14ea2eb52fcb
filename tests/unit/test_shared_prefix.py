"""Rows of one demonstration: the teacher reads it once, and nothing else changes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from selfdistill.schema.common import Lora
from selfdistill.schema.methods import Sdpo, Teacher
from selfdistill.schema.runtime import StageRuntime
from selfdistill.training import prefix, update
from selfdistill.training.components import build_components
from selfdistill.training.data import CONTEXT, Row, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World
from selfdistill.training.network import Network
from selfdistill.training.prefix import can_share, hidden_after_prompt, is_long_and_same, read_prompt
from tiny import tiny_model
from training_session import REPROMPT, TOKENIZER, make_spec

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def rows_of(groups: int, prompt: int, completions: list[int], vocabulary: int) -> list[Row]:
    """Rows of several groups, each with a demonstration of its own, and one row without."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=generator).tolist()

    rows = []
    for _ in range(groups):
        shown = {CONTEXT: TeacherPrompt(ids(prompt))}
        rows += [Row(ids(20), ids(count), RowPlan(teachers=shown), [-1.0] * count) for count in completions]
    return [*rows, Row(ids(9), ids(5), RowPlan(has_gradient=False), [-1.0] * 5)]


def gradients(
    model, rows, monkeypatch, *, shares: bool, micro_batch_tokens: int | None = None, teacher_is=None, **changes
) -> tuple[dict[str, torch.Tensor], dict, int]:
    """Gradients of one update, its metrics, and the tokens that the teacher read."""
    method = Sdpo(reprompt=REPROMPT, top_k=20, teacher=teacher_is or Teacher())
    spec = make_spec(method, **changes)
    runtime = StageRuntime(**({"micro_batch_tokens": micro_batch_tokens} if micro_batch_tokens else {}))
    components = build_components(model, TOKENIZER, spec, runtime, World("cpu"))
    updater, read = components.updater, []
    states = Network.states
    with monkeypatch.context() as patch:
        if not shares:
            patch.setattr(update, "can_share", lambda network: False)

        def counting(network, ids, **arguments):
            if not torch.is_grad_enabled():
                read.append(ids.numel())
            return states(network, ids, **arguments)

        patch.setattr(Network, "states", counting)
        found = updater.run([rows], 1, lambda is_common: None)
    assert not components.updater.teacher.prefixes._kept
    return {n: p.grad for n, p in components.model.named_parameters() if p.grad is not None}, found, sum(read)


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_gradients_are_the_same(monkeypatch, lora):
    rows = rows_of(3, 700, [9, 30, 2, 17], len(TOKENIZER))
    once, found, few = gradients(tiny_model(len(TOKENIZER)), rows, monkeypatch, shares=True, lora=lora)
    each, expected, many = gradients(tiny_model(len(TOKENIZER)), rows, monkeypatch, shares=False, lora=lora)
    assert once.keys() == each.keys()
    for name, gradient in once.items():
        torch.testing.assert_close(gradient, each[name], atol=1e-6, rtol=1e-3)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert many >= 12 * 700 and few < 4 * 800


@pytest.mark.parametrize("kind", ["fixed", "trust_region", "live"])
def test_rows_too_long_for_one_micro_batch_share_their_prompt_too(monkeypatch, kind):
    """One row a micro-batch: in the paper's case, where completions have ten thousand tokens."""
    rows = rows_of(2, 700, [9, 30, 2, 17], len(TOKENIZER))
    held, hidden = [], prefix.Prefixes.hidden

    def watched(self, network, *arguments):
        found = hidden(self, network, *arguments)
        held.append(sum(key[1] == id(network) for key in self._kept))
        return found

    monkeypatch.setattr(prefix.Prefixes, "hidden", watched)
    options = {
        "micro_batch_tokens": 1,
        "teacher_is": Teacher(kind=kind, **({"rate": 0.3} if kind == "trust_region" else {})),
    }
    once, found, few = gradients(tiny_model(len(TOKENIZER)), rows, monkeypatch, shares=True, **options)
    networks = 2 if kind == "trust_region" else 1
    # Four rows of each group read it; one prompt is held at a time, and none when the update is done.
    assert len(held) == 8 * networks and max(held) == 1
    each, expected, many = gradients(tiny_model(len(TOKENIZER)), rows, monkeypatch, shares=False, **options)
    for name, gradient in once.items():
        torch.testing.assert_close(gradient, each[name], atol=1e-6, rtol=1e-3)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert many >= 8 * 700 * networks and few < 2 * 800 * networks


def test_a_prompt_that_no_other_micro_batch_reads_is_not_held(monkeypatch):
    rows = rows_of(2, 700, [9, 30, 2, 17], len(TOKENIZER))
    hidden = prefix.Prefixes.hidden

    def watched(self, *arguments):
        found = hidden(self, *arguments)
        assert not self._kept
        return found

    monkeypatch.setattr(prefix.Prefixes, "hidden", watched)
    _, _, few = gradients(tiny_model(len(TOKENIZER)), rows, monkeypatch, shares=True)
    assert few < 2 * 900


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_are_those_of_whole_rows(dtype):
    network = Network(tiny_model(len(TOKENIZER)).eval(), compute_dtype=dtype)
    prompt, completions = [5, 6, 7, 8, 9] * 8, [[5], [6, 7, 8], [9, 9]]
    with torch.no_grad():
        expected = network.hidden(network.pack([prompt] * 3, completions))
    found = hidden_after_prompt(network, prompt, completions, read_prompt(network, prompt))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


def test_only_long_prompts_that_all_rows_have_are_shared():
    long = [5] * prefix.LEAST_TOKENS
    assert is_long_and_same([long, list(long)])
    assert not is_long_and_same([long])
    assert not is_long_and_same([long, [*long, 5]])
    assert not is_long_and_same([long[1:], long[1:]])


def test_sharing_can_be_switched_off():
    spec, runtime = make_spec(Sdpo(reprompt=REPROMPT)), StageRuntime(share_prompts=False)
    updater = build_components(tiny_model(len(TOKENIZER)), TOKENIZER, spec, runtime, World("cpu")).updater
    micros = updater._micro_batches(rows_of(2, 700, [9, 30], len(TOKENIZER)))
    assert [micro.shared_prompt(CONTEXT) for micro in micros] == [None] * len(micros)


def test_layers_that_forget_share_nothing():
    model = tiny_model(len(TOKENIZER))
    model.config.layer_types = ["sliding_attention", "full_attention"]
    model.config.sliding_window = 8
    assert not can_share(Network(model))


@pytest.mark.slow
def test_a_step_on_long_demonstrations_is_faster(monkeypatch):
    """20 million weights, 2,000 tokens of demonstration, completions of 200, groups of 8; CPU time of one thread."""
    import networks

    rows = rows_of(2, 2000, [200] * 8, 8192)
    monkeypatch.setattr(networks, "POSITIONS", 4096)
    seconds = {True: [], False: []}
    for shares in (True, False, True, False):
        model = networks.make_network("20M")
        start = time.process_time()
        gradients(model, rows, monkeypatch, shares=shares)
        seconds[shares].append(time.process_time() - start)
    ratio = min(seconds[False]) / min(seconds[True])
    print(f"CPU seconds of an update: {seconds}; {ratio:.2f} times as fast")
    assert ratio >= 1.5
