"""Prompts that show a demonstration, as token ids. The ranks share the work: each text is encoded once, by one of them.

Which text a rollout is shown depends on all groups of the step, so every rank chooses all texts; choosing is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from selfdistill.training.data import PromptText, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World


def encode_prompts(plans: Sequence[Sequence[RowPlan]], world: World) -> list[list[RowPlan]]:
    """The plans with the token ids of all their teacher prompts, the same on every rank. Collective.

    UserError where a prompt is too long without any demonstration.
    """
    shown = (prompt for group in plans for plan in group for prompt in plan.teachers.values())
    encoded = encode_texts([prompt for prompt in shown if isinstance(prompt, PromptText)], world)

    def of(prompt: TeacherPrompt | PromptText) -> TeacherPrompt:
        return encoded[prompt] if isinstance(prompt, PromptText) else prompt

    return [
        [replace(plan, teachers={name: of(prompt) for name, prompt in plan.teachers.items()}) for plan in group]
        for group in plans
    ]


def encode_texts(texts: Iterable[PromptText], world: World) -> dict[PromptText, TeacherPrompt]:
    """Each of the texts with its token ids; the ranks must give the same. Collective."""
    distinct = list(dict.fromkeys(texts))
    own = {index: distinct[index].encoded for index in world.select(range(len(distinct)))}
    return dict(zip(distinct, world.gather(own), strict=True))
