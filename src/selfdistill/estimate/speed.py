"""Seconds of a training step from what a GPU can do at most: a roofline, times a stated share of it.

Sampling. One decoding step gives a token to each of R running completions. It reads all weights (bfloat16) and the
cache of every running completion, c bytes a token at a mean context of C tokens:

    step = max((2 x parameters + R c C) / bandwidth, 2 x parameters x R / operations)        tokens/s = share x R / step

R is what the engine's memory holds. For long completions the cache decides: tokens/s tends to bandwidth / (c C).
Training and the teacher: the operations of `arithmetic`, over those of the GPU, times a share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from selfdistill.estimate.arithmetic import StepCost
from selfdistill.estimate.memory import SPARE, plan_memory
from selfdistill.estimate.workload import Workload

#: Shares of the roofline that are assumed: none has been measured here.
SAMPLING_SHARE, TRAINING_SHARE = 0.7, 0.35


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 operations a second, bytes a second and bytes of memory, as published."""

    operations: float
    bandwidth: float
    memory: float


GPUS = {
    "A100": Gpu(312e12, 2.04e12, 80e9),
    "H100": Gpu(989e12, 3.35e12, 80e9),
    "H200": Gpu(989e12, 4.8e12, 141e9),
    "B200": Gpu(2250e12, 8e12, 180e9),
}


@dataclass(frozen=True)
class StepTime:
    """Of one step on all GPUs. `running`: completions that one engine computes at a time."""

    running: int
    tokens_per_second: float
    sampling_seconds: float
    teacher_seconds: float
    student_seconds: float

    @property
    def seconds(self) -> float:
        return self.sampling_seconds + self.teacher_seconds + self.student_seconds


def largest_fraction(work: Workload, memory: float) -> float:
    """The largest `gpu_memory_fraction` that leaves room for what training holds while the engine is awake."""
    held = plan_memory(work).total("always")
    return max(0.0, math.floor(100 * (1 - SPARE - held / memory)) / 100)


def step_time(work: Workload, cost: StepCost, gpu: Gpu) -> StepTime:
    """At the workload's `gpu_memory_fraction`; every completion at the workload's length."""
    operations = gpu.operations * work.processes
    running = running_completions(work, gpu)
    rate = decoding_rate(work, gpu, running) if running else 0.0
    engines = work.engines
    unsampled = math.inf if cost.sampled_tokens else 0.0
    return StepTime(
        running=running,
        tokens_per_second=rate,
        sampling_seconds=cost.sampled_tokens / (rate * engines) if rate else unsampled,
        teacher_seconds=cost.teacher_flops / (TRAINING_SHARE * operations),
        student_seconds=cost.student_flops / (TRAINING_SHARE * operations),
    )


def running_completions(work: Workload, gpu: Gpu) -> int:
    """Completions that one engine has room for; each takes the cache of its mean length."""
    if work.engine != "vllm":
        return 0
    room = work.engine_fraction * gpu.memory * work.tensor_parallel - 2 * work.dimensions.parameters
    engines = work.engines
    return max(0, min(int(room / _cache(work)), -(-work.rows_per_step // engines)))


def decoding_rate(work: Workload, gpu: Gpu, running: int) -> float:
    """Tokens a second of one engine."""
    weights = 2.0 * work.dimensions.parameters
    memory = (weights + running * _cache(work)) / (gpu.bandwidth * work.tensor_parallel)
    arithmetic = weights * running / (gpu.operations * work.tensor_parallel)
    return SAMPLING_SHARE * running / max(memory, arithmetic)


def _cache(work: Workload) -> int:
    """Bytes of a completion's cache when it is half done."""
    context = work.prompt_tokens + work.completion_tokens // 2
    return work.dimensions.cache_bytes(context, context, work.kv_cache_bytes)
