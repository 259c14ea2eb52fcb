"""Time of a step: the roofline by hand, and what the planner recommends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfdistill.estimate import GPUS, PUBLISHED, largest_fraction, plan_memory, step_cost, step_time
from selfdistill.estimate.speed import SAMPLING_SHARE, decoding_rate, running_completions
from test_estimate import make_work

QWEN = next(sizes for name, sizes in PUBLISHED.items() if name.endswith("Qwen3-8B"))


def paper(**changes):
    """Qwen3-8B on eight GPUs: 2,048 completions of 10,000 tokens."""
    settings = {
        "dimensions": QWEN, "engine": "vllm", "processes": 8, "rows_per_step": 2048, "updates_per_step": 8,
        "prompt_tokens": 500, "completion_tokens": 10_000, "teacher_prompts": (10_000,), "engine_fraction": 0.4,
        "micro_batch_tokens": 16384,
    }  # fmt: skip
    return make_work(**settings | changes)


def test_the_cache_decides_the_rate_of_long_completions():
    """With free weights 3.35 TB/s read 144 KiB a token, 5,500 of them a completion: 4,131 tokens a second, at most."""
    limit = 3.35e12 / (36 * 2 * 1024 * 2 * 5500)
    assert limit == pytest.approx(4131, rel=1e-3)
    rates = [decoding_rate(paper(), GPUS["H100"], running) / SAMPLING_SHARE for running in (1, 30, 10_000)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(limit, rel=0.01)
    # One completion alone waits for all weights.
    assert rates[0] == pytest.approx(3.35e12 / (2 * QWEN.parameters + 147_456 * 5500), rel=1e-6)


def test_short_completions_are_bound_by_arithmetic():
    work = paper(prompt_tokens=1, completion_tokens=2)
    gpu = GPUS["H100"]
    assert decoding_rate(work, gpu, 10**6) == pytest.approx(SAMPLING_SHARE * gpu.operations / (2 * QWEN.parameters))


def test_as_much_runs_as_there_is_memory_for():
    work, gpu = paper(), GPUS["H100"]
    room = 0.4 * 80e9 - 2 * QWEN.parameters
    assert running_completions(work, gpu) == int(room / (147_456 * 5500))
    assert running_completions(replace(work, rows_per_step=16), gpu) == 2
    assert running_completions(replace(work, engine_fraction=0.1), gpu) == 0


@pytest.mark.parametrize("name", GPUS)
def test_the_largest_fraction_fits_and_more_would_not(name):
    gpu, work = GPUS[name], paper()
    best = replace(work, engine_fraction=largest_fraction(work, gpu.memory))
    plan = plan_memory(best, round(gpu.memory))
    assert plan.total("sampling") <= gpu.memory
    more = replace(best, engine_fraction=best.engine_fraction + 0.05)
    assert plan_memory(more, round(gpu.memory)).total("sampling") > gpu.memory
    assert step_time(best, step_cost(best), gpu).seconds <= step_time(work, step_cost(work), gpu).seconds


def test_a_step_that_nothing_can_sample_takes_forever_and_one_without_sampling_does_not():
    gpu = GPUS["H100"]
    none = paper(engine_fraction=0.1)
    assert step_time(none, step_cost(none), gpu).seconds == float("inf")
    given = paper(engine="none")
    assert 0 < step_time(given, step_cost(given), gpu).seconds < float("inf")
