"""Demonstrations that the policy writes anew before a teacher reads them (context `regenerated`, docs/method.md 3).

The step samples a second time: one completion of each prompt that shows a demonstration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from selfdistill.rollouts import Group, Prompt, Rollout
from selfdistill.training.data import PromptText
from selfdistill.training.distributed import World
from selfdistill.training.methods.encoding import encode_texts

#: Place in the step of the first of them: above those of all problems that a step can draw.
FIRST_PLACE = 1_000_000


def regenerate(
    groups: Sequence[Group],
    shown: Mapping[tuple[int, int], PromptText],
    sample: Callable[[Sequence[Prompt]], Sequence[Group]],
    world: World,
) -> list[Group]:
    """The groups, where the rollouts of `shown` hold what was written; `sample` gives groups of one. Collective."""
    encoded = encode_texts(shown.values(), world)
    prompts = [
        replace(groups[place][index].prompt, prompt_ids=encoded[text].ids, is_truncated=encoded[text].is_truncated)
        for (place, index), text in shown.items()
    ]
    written = dict(zip(shown, (rollout for [rollout] in sample(prompts)), strict=True))
    return [
        [replace(rollout, regenerated=written.get((place, index))) for index, rollout in enumerate(group)]
        for place, group in enumerate(groups)
    ]


def regenerated(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout.regenerated for group in groups for rollout in group if rollout.regenerated]


def counts(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics of the step; the means only where something was written."""
    found = regenerated(groups)
    if not found:
        return {"regenerated": 0}
    return {
        "regenerated": len(found),
        "regenerated_reward_mean": sum(rollout.reward for rollout in found) / len(found),
        "regenerated_tokens_mean": sum(len(rollout.completion.token_ids) for rollout in found) / len(found),
        "regenerated_truncation_rate": sum(r.completion.stop_reason == "length" for r in found) / len(found),
    }
