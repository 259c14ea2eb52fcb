"""Rollouts: completions of prompts, decoded and graded, as objects and as rows of rollouts.parquet.

    prompts, seeds -> sampler -> completions -> texts -> verdicts -> rollouts -> rows

The stages `rollouts` and `evaluate`, the training loop and the evaluation during training all go through here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.generation import Completion, sample_seed
from selfdistill.grading import Grade, WorkerPool, grade, shown_answer
from selfdistill.schema.common import Grader


@dataclass(frozen=True)
class Prompt:
    """A problem as the student sees it: `messages` and `prompt_ids` hold its `question`, in the words of a template.

    `answer` is the gold answer, `solution` the data set's own, if it has one. `is_truncated`: `prompt_ids` show a
    demonstration that was cut to fit.
    """

    row_id: int
    problem_id: str
    family: str
    question: str
    answer: str
    messages: list[dict[str, str]]
    prompt_ids: list[int]
    solution: str | None = None
    is_truncated: bool = False


@dataclass(frozen=True)
class Rollout:
    """One graded completion of a prompt; `sample` counts within its group. Only programs have `feedback`.

    `regenerated`: what the policy wrote when this completion was shown to it; only where a teacher reads that.
    """

    prompt: Prompt
    sample: int
    completion: Completion
    text: str
    outcome: str
    reward: float
    extracted: str
    feedback: str = ""
    regenerated: Rollout | None = None


#: All completions of one prompt.
Group = list[Rollout]

#: (completions, the prompt of each, stop reasons) -> one verdict each.
GradeFunction = Callable[[Sequence[str], Sequence[Prompt], Sequence[str]], Sequence[Grade]]


def grade_function(grader: Grader, pool: WorkerPool) -> GradeFunction:
    """`grade` with a recipe's grader."""

    def grade_prompts(texts: Sequence[str], prompts: Sequence[Prompt], stop_reasons: Sequence[str]) -> list[Grade]:
        golds, questions = [prompt.answer for prompt in prompts], [prompt.question for prompt in prompts]
        return grade(texts, golds, stop_reasons, grader, pool, questions)

    return grade_prompts


def sampling_seeds(seed: int, prompts: Sequence[Prompt], samples: int) -> list[list[int]]:
    """Seeds [prompt][sample] from row and sample alone, so that checkpoints are compared under the same noise."""
    return [[sample_seed(seed, prompt.row_id, sample) for sample in range(samples)] for prompt in prompts]


def grade_groups(
    prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], tokenizer: Any, grade: GradeFunction
) -> list[Group]:
    """Decode and grade the completions of each prompt."""
    flat = [
        (prompt, sample, completion)
        for prompt, group in zip(prompts, completions, strict=True)
        for sample, completion in enumerate(group)
    ]
    # One by one: `batch_decode` makes one text of no completions, as a rank or part without prompts has them.
    texts = [tokenizer.decode(completion.token_ids, skip_special_tokens=True) for _, _, completion in flat]
    verdicts = grade(texts, [prompt for prompt, _, _ in flat], [c.stop_reason for _, _, c in flat])
    rollouts = (
        Rollout(prompt, sample, completion, text, verdict.outcome, verdict.reward, verdict.extracted, verdict.feedback)
        for (prompt, sample, completion), text, verdict in zip(flat, texts, verdicts, strict=True)
    )
    return [[next(rollouts) for _ in group] for group in completions]


def rollout_rows(groups: Sequence[Group], step: int, grader: Grader) -> list[dict[str, Any]]:
    """Rows of rollouts.parquet: a checkpoint's completions in evaluation, a step's in training."""
    return [
        {
            "step": step,
            "row_id": rollout.prompt.row_id,
            "sample": rollout.sample,
            "problem_id": rollout.prompt.problem_id,
            "family": rollout.prompt.family,
            "answer": shown_answer(rollout.prompt.answer, grader),
            "prompt_tokens": len(rollout.prompt.prompt_ids),
            "completion": rollout.text,
            "completion_ids": rollout.completion.token_ids,
            "logprobs": rollout.completion.logprobs,
            "completion_tokens": len(rollout.completion.token_ids),
            "stop_reason": rollout.completion.stop_reason,
            "outcome": rollout.outcome,
            "reward": rollout.reward,
            "extracted": rollout.extracted,
            "feedback": rollout.feedback,
            "regenerated": rollout.regenerated.text if rollout.regenerated else None,
        }
        for group in groups
        for rollout in group
    ]
