"""Teacher prompts of a training step: for each rollout the context of one kind, if the step holds one for it.

They are chosen as texts; encoding.py encodes those of a step.

none               the student's own prompt (the null control)
solution, solution_no_think     a correct completion of the group, with its thinking or without (docs/method.md 3)
regenerated        what the policy wrote after it had read that completion; it may be wrong
answer             the right answer alone
feedback           what was wrong with the rollout itself; right rollouts have none
concise            an instruction, no solution
wrong              a wrong completion of the group, shown as if it were correct (a control)
donor              question and correct completion of another problem of the step (a control)
reference_only     a correct completion of the group without the question (a control)
reference          the data set's own solution; problems without one have none
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from selfdistill.contexts import (
    ANSWER_TEMPLATE,
    Attempt,
    choose_demonstrations,
    encode_context,
    feedback_text,
)
from selfdistill.prompts import Message, encode_chat, fill
from selfdistill.rollouts import Group, Rollout
from selfdistill.schema.errors import UserError
from selfdistill.schema.methods import DemonstrationSettings, TeacherContext
from selfdistill.thinking import Answer, Thinking
from selfdistill.training.data import PromptText, TeacherPrompt
from selfdistill.training.methods.base import Policy

ShownPrompt = TeacherPrompt | PromptText


class TeacherPrompts:
    """Builds the prompts by the settings of a method; a prompt also has to leave room for a completion.

    Without `shows_question` every prompt is the same but for its question, which is empty.
    """

    def __init__(self, settings: DemonstrationSettings, policy: Policy, *, shows_question: bool = True) -> None:
        self.settings = settings
        self.policy = policy
        self.shows_question = shows_question
        own = settings.teacher_thinking
        self.enable_thinking = policy.thinking if own is None else own
        self.thinking = Thinking.of(policy.tokenizer, policy.thinking_marks)
        self.max_tokens = settings.max_reprompt_tokens
        if policy.max_positions is not None:
            self.max_tokens = min(self.max_tokens, policy.max_positions - policy.max_completion_tokens)
        if self.max_tokens <= 0:
            raise UserError(
                f"on_policy.sampling.max_tokens = {policy.max_completion_tokens} leaves no room for a teacher prompt "
                f"in the model's {policy.max_positions} positions."
            )

    def of(self, kind: TeacherContext, groups: Sequence[Group]) -> list[ShownPrompt | None]:
        """One prompt per rollout, over all groups of the step in their order; None where there is no such context."""
        if kind == "donor":
            return [prompt for place, group in enumerate(groups) for prompt in self._donor(groups, place, len(group))]
        if kind in ("none", "answer", "feedback", "concise", "reference"):
            return [self._alone(kind, rollout) for group in groups for rollout in group]
        return [prompt for group in groups for prompt in self._siblings(kind, group)]

    def to_regenerate(self, groups: Sequence[Group]) -> dict[tuple[int, int], PromptText]:
        """The demonstrations of the groups, each with the prompt that shows it (`TrainingMethod.to_regenerate`)."""
        return {
            (place, index): self._encode("solution", group[index], group[index].text, by_policy=True)
            for place, group in enumerate(groups)
            for index in sorted(set(self._demonstrations(group)) - {None})
        }

    def feedback(self, rollout: Rollout) -> PromptText:
        """A prompt with what the grader said of the rollout itself."""
        return self._encode("feedback", rollout, rollout.feedback)

    def wrong_siblings(self, group: Group, count: int) -> list[list[PromptText | None]]:
        """`count` prompts per rollout, each with another wrong completion of the group; None where there are fewer."""
        wrong = [place for place, rollout in enumerate(group) if not self._is_right(rollout)]
        shown = {place: self._encode("wrong", group[place], group[place].text) for place in wrong}
        others = ([shown[place] for place in wrong if place != own][:count] for own in range(len(group)))
        return [[*prompts, *[None] * (count - len(prompts))] for prompts in others]

    def _alone(self, kind: TeacherContext, rollout: Rollout) -> ShownPrompt | None:
        """A context that needs no other rollout."""
        if kind == "none" and self.shows_question and self.enable_thinking == self.policy.thinking:
            return TeacherPrompt(rollout.prompt.prompt_ids)
        if kind == "none":
            messages = self._messages(kind, rollout)
            return PromptText(lambda: (encode_chat(self.policy.tokenizer, messages, self.enable_thinking), False))
        if kind == "answer":
            return self._encode(kind, rollout, fill(ANSWER_TEMPLATE, {"answer": rollout.prompt.answer}))
        if kind == "concise":
            return self._encode(kind, rollout, self.settings.instruction)
        if kind == "reference":
            return self._encode(kind, rollout, rollout.prompt.solution) if rollout.prompt.solution else None
        if self._is_right(rollout):
            return None
        return self._encode(kind, rollout, feedback_text(_attempt(rollout)))

    def _siblings(self, kind: TeacherContext, group: Group) -> list[PromptText | None]:
        """The first fitting completion of the group for each rollout; rollouts with the same one share a prompt."""
        if kind == "wrong":
            return [prompts[0] for prompts in self.wrong_siblings(group, 1)]
        chosen = self._demonstrations(group)
        prompts = {index: self._demonstration(kind, group[index]) for index in set(chosen) if index is not None}
        return [prompts.get(index) for index in chosen]

    def _demonstrations(self, group: Group) -> list[int | None]:
        """Place of the demonstration of each rollout."""
        return choose_demonstrations(
            [rollout.reward for rollout in group], self.settings.success_threshold, self.settings.exclude_own_success
        )

    def _demonstration(self, kind: TeacherContext, demonstration: Rollout) -> PromptText | None:
        if kind == "regenerated":
            return self._regenerated(demonstration.regenerated)
        if kind != "solution_no_think":
            return self._encode(kind, demonstration, demonstration.text)
        answer = self.thinking.answer(
            demonstration.text, demonstration.completion.token_ids, demonstration.prompt.prompt_ids
        )
        text = answer.text.strip()
        if not text:
            return None  # Never the full text instead.
        return self._encode(kind, demonstration, answer.text if self.settings.keep_space else text, answer)

    def _regenerated(self, written: Rollout | None) -> PromptText | None:
        """What was written; it also counts as cut where the demonstration that the policy was shown had been cut."""
        if written is None:
            raise ValueError("context `regenerated`: to_regenerate of this method has not asked for the demonstrations")
        if not written.text.strip():
            return None
        prompt = self._encode("regenerated", written, written.text)

        def encode() -> tuple[list[int], bool]:
            ids, is_truncated = prompt.encode()
            return ids, is_truncated or written.prompt.is_truncated

        return PromptText(encode)

    def _donor(self, groups: Sequence[Group], place: int, count: int) -> list[PromptText | None]:
        """The next problem of the step, in a cycle, that is another one and has a correct completion."""
        group = groups[place]
        for other in [*groups[place + 1 :], *groups[:place]]:
            right = next(filter(self._is_right, other), None)
            if right is not None and right.prompt.problem_id != group[0].prompt.problem_id:
                text = f"{right.prompt.messages[-1]['content']}\n\n{right.text}"
                return [self._encode("donor", group[0], text)] * count
        return [None] * count

    def _encode(
        self,
        kind: TeacherContext,
        rollout: Rollout,
        text: str,
        answer: Answer | None = None,
        *,
        by_policy: bool = False,
    ) -> PromptText:
        """`by_policy`: the policy completes this prompt; the teacher only reads the others."""
        thinking = self.policy.thinking if by_policy else self.enable_thinking
        messages = self._messages(kind, rollout)
        encode = partial(
            encode_context,
            self.policy.tokenizer,
            messages,
            kind,
            text,
            self.settings.reprompt,
            thinking,
            self.max_tokens,
        )
        return PromptText(encode) if answer is None else PromptText(encode, answer.is_stripped, answer.has_leaked)

    def _messages(self, kind: TeacherContext, rollout: Rollout) -> list[Message]:
        messages: list[Message] = rollout.prompt.messages
        if self.shows_question and kind != "reference_only":
            return messages
        return [*messages[:-1], {**messages[-1], "content": ""}]

    def _is_right(self, rollout: Rollout) -> bool:
        return rollout.reward >= self.settings.success_threshold


def _attempt(rollout: Rollout) -> Attempt:
    return Attempt(
        rollout.prompt.row_id, rollout.sample, rollout.text, rollout.reward, rollout.outcome,
        rollout.completion.stop_reason, rollout.feedback,
    )  # fmt: skip
