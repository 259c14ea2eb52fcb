"""Bytes of main memory that a training process on a GPU holds besides what every Python process does."""

from __future__ import annotations

from selfdistill.estimate.workload import Workload


def state_copy(work: Workload) -> int:
    """Bytes of main memory that a process copies its part of a resume state to; 0 where weights are not sharded."""
    if not work.is_sharded:
        return 0
    trained = work.dimensions.parameters if work.adapter_parameters is None else work.adapter_parameters
    return (16 if work.has_moving_teacher else 12) * -(-trained // work.shards)


def engine_copy(work: Workload) -> int:
    """Bytes of an engine's weights that a process keeps in main memory while the engine sleeps (bfloat16, pinned)."""
    if work.engine != "vllm" or work.device != "cuda":
        return 0
    return -(-2 * work.dimensions.parameters // work.tensor_parallel)
