"""Prompts that show a demonstration, as token ids. The ranks share the work: each text is encoded once, by one of them.

Which text a rollout is shown depends on all groups of the step, so every rank chooses all texts; choosing is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from selfdistill.training.data import PromptText, RowPlan, TeacherPrompt
from selfdistill.training.distributed import World

#: Texts that a rank encodes at a time: two to four seconds for texts of 10,000 tokens.
_BLOCK = 32


def encode_prompts(
    plans: Sequence[Sequence[RowPlan]], world: World, on_block: Callable[[], None] = lambda: None
) -> list[list[RowPlan]]:
    """The plans with the token ids of all their teacher prompts, the same on every rank. Collective.

    UserError where a prompt is too long without any demonstration. `on_block` as for `encode_texts`.
    """
    shown = (prompt for group in plans for plan in group for prompt in plan.teachers.values())
    encoded = encode_texts([prompt for prompt in shown if isinstance(prompt, PromptText)], world, on_block)

    def of(prompt: TeacherPrompt | PromptText) -> TeacherPrompt:
        return encoded[prompt] if isinstance(prompt, PromptText) else prompt

    return [
        [replace(plan, teachers={name: of(prompt) for name, prompt in plan.teachers.items()}) for plan in group]
        for group in plans
    ]


def encode_texts(
    texts: Iterable[PromptText], world: World, on_block: Callable[[], None] = lambda: None
) -> dict[PromptText, TeacherPrompt]:
    """Each of the texts with its token ids; the ranks must give the same. Collective.

    All ranks call `on_block` before each block of texts, and may leave there by an error.
    """
    distinct = list(dict.fromkeys(texts))
    own: dict[int, TeacherPrompt] = {}
    for start in range(0, len(distinct), _BLOCK * world.size):
        on_block()
        block = range(start, min(start + _BLOCK * world.size, len(distinct)))
        own |= {index: distinct[index].encoded for index in world.select(block)}
    return dict(zip(distinct, world.gather(own), strict=True))
