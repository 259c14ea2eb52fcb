"""Completions with a token budget each, for samplers that take one limit for all of their prompts.

Prompts share a call where even the longest of them has room for the largest budget among them; a completion that is
longer than its own budget is cut there. A completion depends on its prompt and its seed alone, so the cut one is what
its own limit would have given.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.generation.base import Completion, Sampler
from selfdistill.schema.common import Sampling


def budget_groups(lengths: Sequence[int], budgets: Sequence[int], max_positions: int | None) -> list[list[int]]:
    """Places of prompts that are sampled together, given their lengths in tokens; not those with a budget of 0.

    In each group the longest prompt and the largest budget fit in `max_positions`, if each prompt does with its own.
    """
    groups: list[list[int]] = []
    for place in sorted((place for place, budget in enumerate(budgets) if budget > 0), key=lambda p: -budgets[p]):
        fits = max_positions is None or (groups and lengths[place] + budgets[groups[-1][0]] <= max_positions)
        if groups and fits:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def generate_within(
    sampler: Sampler,
    groups: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    budgets: Sequence[int],
) -> list[list[Completion]]:
    """As `Sampler.generate`, with the budget of each prompt in place of `sampling.max_tokens`.

    A budget of 0 gives completions without a token, cut off by their length.
    """
    found = [[Completion([], [], "length")] * len(own) for own in seeds]
    for group in groups:
        limit = sampling.model_copy(update={"max_tokens": max(budgets[place] for place in group)})
        chosen = [prompts[place] for place in group], [seeds[place] for place in group]
        for place, completions in zip(group, sampler.generate(*chosen, limit), strict=True):
            found[place] = [_cut(completion, budgets[place]) for completion in completions]
    return found


def _cut(completion: Completion, budget: int) -> Completion:
    if len(completion.token_ids) <= budget:
        return completion
    return Completion(completion.token_ids[:budget], completion.logprobs[:budget], "length")
