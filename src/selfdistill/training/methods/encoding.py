"""The teacher prompts of a step as token ids. The ranks share the work: each text is encoded once, by one of them.

Which text a rollout is shown depends on all groups of the step, so every rank chooses all texts; choosing is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfdistill.training.data import PromptText, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World


def encode_prompts(plans: Sequence[Sequence[RowPlan]], world: World) -> list[list[RowPlan]]:
    """The plans with the token ids of all their teacher prompts, the same on every rank. Collective.

    UserError where a prompt is too long without any demonstration.
    """
    shown = (prompt for group in plans for plan in group for prompt in plan.teachers.values())
    texts = list(dict.fromkeys(prompt for prompt in shown if isinstance(prompt, PromptText)))
    own = {index: texts[index].encoded for index in world.select(range(len(texts)))}
    encoded = dict(zip(texts, world.gather(own), strict=True))

    def of(prompt: TeacherPrompt | PromptText) -> TeacherPrompt:
        return encoded[prompt] if isinstance(prompt, PromptText) else prompt

    return [
        [replace(plan, teachers={name: of(prompt) for name, prompt in plan.teachers.items()}) for plan in group]
        for group in plans
    ]
