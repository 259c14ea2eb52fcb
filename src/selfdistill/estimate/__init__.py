"""What a training run needs, before it runs: memory of each GPU by part, tokens and arithmetic of a step. No torch.

    dimensions   of a model: its config.json, or a short table of the published ones
    workload     what decides the memory: model, recipe, machine settings, number of GPUs
    memory       bytes by part and phase; does it fit; which settings would help
    host_memory  bytes of main memory beside the GPUs
    arithmetic   tokens and floating-point operations of a step
    speed        seconds of a step from what a GPU can do at most

The trainer is modelled as it is written (training/network.py, update.py, parts.py), and held against measured peaks
(tests/unit/test_estimate_measured.py).
"""

from selfdistill.estimate.arithmetic import StepCost, step_cost
from selfdistill.estimate.dimensions import PUBLISHED, Dimensions, dimensions_of
from selfdistill.estimate.host_memory import engine_copy, state_copy
from selfdistill.estimate.memory import Part, Plan, fewest_gpus, largest_micro_batch, plan_memory, suggestions
from selfdistill.estimate.speed import GPUS, Gpu, largest_fraction, step_time
from selfdistill.estimate.workload import Workload, workload_of

__all__ = [
    "GPUS",
    "Gpu",
    "largest_fraction",
    "step_time",
    "PUBLISHED",
    "Dimensions",
    "Part",
    "Plan",
    "StepCost",
    "Workload",
    "dimensions_of",
    "engine_copy",
    "fewest_gpus",
    "largest_micro_batch",
    "plan_memory",
    "state_copy",
    "step_cost",
    "suggestions",
    "workload_of",
]
