"""Sampling of a training step: its prompts, their seeds, this rank's part of them, and the form kept in a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from selfdistill.generation.base import Completion, OnProgress, Sampler, sample_seed
from selfdistill.rollouts import Group, Prompt, Rollout
from selfdistill.schema.stages import TrainSpec
from selfdistill.training.data import draw_indices


def step_prompts(spec: TrainSpec, prompts: Sequence[Prompt], step: int) -> list[Prompt]:
    """The prompts of a step, in order."""
    return [prompts[index] for index in draw_indices(spec, step, len(prompts))]


def sample_groups(
    spec: TrainSpec,
    prompts: Sequence[Prompt],
    places: Sequence[int],
    step: int,
    sampler: Sampler,
    on_progress: OnProgress,
) -> list[list[Completion]]:
    """A group of completions for each of the prompts at `places` in the step.

    Seeds depend on (spec seed, step, place in the step, row, sample) and not on the rank that samples: a problem drawn
    twice gets different noise, and the result does not depend on how places are spread over ranks.
    """
    seeds = [
        [
            sample_seed(spec.seed, "rollout", step, place, prompts[place].row_id, sample)
            for sample in range(spec.on_policy.group_size)
        ]
        for place in places
    ]
    return sampler.generate(
        [prompts[place].prompt_ids for place in places], seeds, spec.on_policy.sampling, on_progress
    )


def groups_to_json(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """Graded rollouts without their prompts, which follow from the step number."""
    return [[{**asdict(rollout), "prompt": None} for rollout in group] for group in groups]


def groups_from_json(value: Sequence[Sequence[dict[str, Any]]], prompts: Sequence[Prompt]) -> list[Group]:
    """The inverse of `groups_to_json`, given the prompts of that step."""
    return [
        [Rollout(**{**item, "prompt": prompt, "completion": Completion(**item["completion"])}) for item in group]
        for prompt, group in zip(prompts, value, strict=True)
    ]
