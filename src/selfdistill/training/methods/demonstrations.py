"""Methods whose teacher is shown a context, such as a correct completion of the same group (docs/method.md 3).

Right and wrong rollouts alike are distilled where the step holds a context for them. The others are masked: no forward
pass, no loss, but counted in the denominator of the paper's aggregation. With `feedback` a rollout without a
demonstration is distilled from the teacher that has read what was wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfdistill.rollouts import Group, Rollout
from selfdistill.schema.methods import DemonstrationSettings
from selfdistill.training.data import CONTEXT, PromptText, RowPlan, TeacherPrompt
from selfdistill.training.methods.base import Policy, TrainingMethod
from selfdistill.training.methods.teacher_prompts import TeacherPrompts


class DemonstrationMethod(TrainingMethod):
    """Base of such methods; they add the loss."""

    settings: DemonstrationSettings

    def __init__(self, settings: DemonstrationSettings, policy: Policy) -> None:
        super().__init__(settings, policy)
        self.max_truncated_share = settings.max_truncated_share
        self.prompts = TeacherPrompts(settings, policy)

    def to_regenerate(self, groups: Sequence[Group]) -> dict[tuple[int, int], PromptText]:
        return self.prompts.to_regenerate(groups) if self.settings.context == "regenerated" else {}

    def contexts(self, groups: Sequence[Group]) -> dict[str, list[TeacherPrompt | None]]:
        return {CONTEXT: self.shown(self.prompts, groups)}

    def shown(self, prompts: TeacherPrompts, groups: Sequence[Group]) -> list[TeacherPrompt | None]:
        """The context of the settings for every rollout."""
        shown = prompts.of(self.settings.context, groups)
        if self.settings.feedback:
            rollouts = (rollout for group in groups for rollout in group)
            shown = [
                prompts.feedback(rollout) if prompt is None and rollout.feedback else prompt
                for prompt, rollout in zip(shown, rollouts, strict=True)
            ]
        return shown

    def plan(self, group: Sequence[Rollout]) -> list[RowPlan]:
        return [RowPlan() for _ in group]

    def settle(self, plan: RowPlan) -> RowPlan:
        return plan if CONTEXT in plan.teachers else replace(plan, is_supervised=False, has_gradient=False)
