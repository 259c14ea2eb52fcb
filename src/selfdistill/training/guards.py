"""Checks that stop training with a reason when it cannot succeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfdistill.schema.errors import UserError
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.data import RowPlan
from selfdistill.training.state import Progress


def check_inputs(
    spec: TrainSpec, prompts: Sequence[Any], examples: Sequence[Any] | None, sampler: Any, grade: Any
) -> None:
    """Raise UserError for empty data, ValueError for missing arguments."""
    if spec.on_policy is None:
        if not examples:
            raise UserError("there are no completions to train on: the sft_data stage kept none.")
        if any(not example.completion_ids for example in examples):
            raise UserError("a completion to train on is empty: check the sft_data stage.")
    elif not prompts:
        raise UserError("there are no prompts to train on: check max_prompt_tokens and the data set.")
    elif sampler is None or grade is None:
        raise ValueError("on-policy training needs a sampler and a grader")


def check_contexts(step: int, found: dict[str, float], max_truncated_share: float) -> None:
    """Raise UserError when more demonstrations were truncated than the method allows."""
    share = found.get("teacher_prompt_truncated_share", 0.0)
    if share > max_truncated_share:
        raise UserError(
            f"step {step}: {share:.0%} of the demonstrations were truncated to fit the teacher's prompt, more than "
            f"method.max_truncated_share = {max_truncated_share:.0%}. Raise method.max_reprompt_tokens or lower "
            "on_policy.sampling.max_tokens."
        )


def check_stripped(step: int, plans: Sequence[Sequence[RowPlan]]) -> None:
    """Raise UserError where `solution_no_think` shows whole completions: it would be `solution` under another name."""
    prompts = [prompt for group in plans for plan in group for prompt in plan.teachers.values()]
    found = [prompt.is_stripped for prompt in prompts if prompt.is_stripped is not None]
    if found and not any(found):
        raise UserError(
            f"step {step}: method.context = solution_no_think, but not one of {len(found)} demonstrations had thinking "
            "to remove. Set thinking_marks of the model to what encloses its thinking, switch thinking on, or use "
            "context: solution."
        )


def check_signal(progress: Progress, found: dict[str, float], limit: int) -> None:
    """Count successive steps without a learning signal; raise UserError at the limit, which is at most the whole run:
    a run in which no step had a signal learned nothing, though weight decay moved its weights.

    With a KL penalty every row has a gradient, but groups with equal rewards have no learning signal.
    """
    has_signal = found["supervised_tokens"] and found.get("usable_group_share", 1.0)
    progress.steps_without_signal = 0 if has_signal else progress.steps_without_signal + 1
    if progress.steps_without_signal >= limit:
        reward, truncated, usable = (
            found.get(name, 0.0) for name in ("reward_mean", "truncation_rate", "usable_group_share")
        )
        raise UserError(
            f"step {progress.step}: no learning signal in the last {limit} steps (no usable group or supervised "
            f"token; mean reward {reward:.3f}, truncated {truncated:.0%}, usable groups {usable:.0%}). Use problems "
            "that the model sometimes solves, a longer max_tokens, or check the grader."
        )


def check_sampler_gap(step: int, found: dict[str, float], limit: float) -> None:
    """Raise UserError when the log-probs of the sampled tokens differ too much between sampler and trainer."""
    gap = found.get("sampler_gap", 0.0)
    if gap > limit:
        raise UserError(
            f"step {step}: log-probs of the sampler and of the trainer differ by {gap:.3f} nats a token, more than "
            f"max_sampler_gap = {limit} (config/runtime.yaml): the sampler may hold old weights, or compute in too low "
            "a precision. Compare with engine: torch; raise the limit only if you know the cause."
        )
