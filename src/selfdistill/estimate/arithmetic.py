"""Tokens and floating-point operations of one training step, all processes together.

A matrix of n weights costs 2n operations a token; a backward pass costs two forward passes, and gradient checkpointing
one more. Attention costs 4 Q operations for each pair of positions (scores and mixing), over half the square of a
sequence. The embedding costs nothing, the head is computed for completion tokens only. What is not counted: norms,
softmax, the loss, the optimiser, communication.

These are operations, not seconds: seconds follow from a rate that must be measured on the machine in question.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.estimate.workload import Workload


@dataclass(frozen=True)
class StepCost:
    """Upper bounds: every completion at its longest, no row without signal, prompts read for each row."""

    completions: int
    sampled_tokens: int
    student_tokens: int
    teacher_tokens: int
    sampling_flops: float
    teacher_flops: float
    student_flops: float

    @property
    def flops(self) -> float:
        return self.sampling_flops + self.teacher_flops + self.student_flops


def step_cost(work: Workload) -> StepCost:
    """Work of a step; old log-probs cost a further forward pass of all rows but those of the first update."""
    rows, length = work.rows_per_step, work.longest_student
    completion = work.completion_tokens
    backward = 2 + (1 if work.has_checkpointing else 0)
    on_policy = work.engine != "none"
    again = work.regenerated_rows
    sampling = rows * _forward(work, length, completion) + again * _forward(work, work.longest_sampled, completion)
    scored_again = (work.updates_per_step - 1) / work.updates_per_step if on_policy else 0
    return StepCost(
        completions=rows,
        sampled_tokens=(rows + again) * completion if on_policy else 0,
        student_tokens=rows * length,
        teacher_tokens=rows * sum(work.teacher_lengths),
        sampling_flops=sampling if on_policy else 0.0,
        teacher_flops=rows * sum(_forward(work, read, completion) for read in work.teacher_lengths),
        student_flops=rows * _forward(work, length, completion) * (1 + backward + scored_again),
    )


def _forward(work: Workload, length: int, scored: int) -> float:
    """One forward pass of one sequence, the head on `scored` of its tokens."""
    sizes = work.dimensions
    matrices = 2.0 * length * sizes.layers * sizes.layer_parameters
    full = (sizes.layers - sizes.window_layers) * length * length / 2
    window = min(sizes.window or length, length)
    windowed = sizes.window_layers * (window * length - window * window / 2)
    return matrices + 4.0 * sizes.query_width * (full + windowed) + 2.0 * scored * sizes.head_parameters
