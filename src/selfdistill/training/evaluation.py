"""Evaluation during training: a few problems of a benchmark every N steps, as metrics of the step.

Sampled and graded like the evaluate stage. Seeds depend on problem and sample alone, so steps are compared under the
same noise, and training itself does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.epistemic import PAPER_WORDS, count_many, density
from selfdistill.generation.base import Completion, OnProgress, Sampler
from selfdistill.rollouts import GradeFunction, Group, Prompt, grade_groups, sampling_seeds
from selfdistill.schema.training import TrainingEvaluation
from selfdistill.training.distributed import World
from selfdistill.training.sampling import Stopped, portions


@dataclass(frozen=True)
class Evaluation:
    """Settings, problems, and what samples and grades them."""

    settings: TrainingEvaluation
    prompts: Sequence[Prompt]
    sampler: Sampler
    grade: GradeFunction
    tokenizer: Any

    def is_due(self, step: int, last: int) -> bool:
        return step % self.settings.every_steps == 0 or step == last

    def run(self, world: World, on_progress: OnProgress) -> dict[str, float] | None:
        """Metrics of the current weights; None where `on_progress` raised Stopped on any rank.

        Collective: every rank calls it and samples its part.
        """
        sampled: dict[int, list[Completion]] = {}
        is_stopped = False
        try:
            for place, completions in self._stream(world, on_progress):
                sampled[place] = completions
        except Stopped:
            is_stopped = True
        if world.any(is_stopped):
            return None
        prompts = [self.prompts[place] for place in sampled]
        groups = grade_groups(prompts, list(sampled.values()), self.tokenizer, self.grade)
        rows = world.gather(dict(zip(sampled, map(_counted, groups), strict=True)))
        return _metrics([row for group in rows for row in group])

    def _stream(self, world: World, on_progress: OnProgress) -> Iterator[tuple[int, list[Completion]]]:
        return self.sampler.stream_portions(
            portions(self.sampler, len(self.prompts), world),
            [prompt.prompt_ids for prompt in self.prompts],
            sampling_seeds(self.settings.seed, self.prompts, self.settings.samples),
            self.settings.sampling,
            on_progress=on_progress,
        )


def _counted(group: Group) -> list[tuple[float, int, bool, str, int]]:
    """(reward, tokens, whether it was cut off, outcome, epistemic words) of each completion."""
    words = count_many([rollout.text for rollout in group], PAPER_WORDS, "substring")
    return [
        (
            rollout.reward,
            len(rollout.completion.token_ids),
            rollout.completion.stop_reason == "length",
            rollout.outcome,
            sum(counts[index] for counts in words.values()),
        )
        for index, rollout in enumerate(group)
    ]


def _metrics(rows: Sequence[tuple[float, int, bool, str, int]]) -> dict[str, float]:
    rewards, tokens, truncated, outcomes, words = (list(column) for column in zip(*rows, strict=True))
    return {
        "evaluation_avg_at_k": sum(rewards) / len(rows),
        "evaluation_mean_length": sum(tokens) / len(rows),
        "evaluation_truncation_rate": sum(truncated) / len(rows),
        "evaluation_unparsed_share": outcomes.count("unparsed") / len(rows),
        "evaluation_timeout_share": outcomes.count("timeout") / len(rows),
        "evaluation_unreadable_gold_share": outcomes.count("unreadable_gold") / len(rows),
        "evaluation_epistemic_density_per_1k_tokens": density(sum(words), sum(tokens)),
    }
