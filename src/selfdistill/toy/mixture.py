"""The pretraining text of the toy world: everything that is *assumed* about its base model.

Three kinds of text, with one rule for all families:

* textbook: pages that drill the check of one number, `which mod 7 = r0 : A 6 B 3 ... B 3 check r3 no A 6 check r6 no`
* plain: a problem answered at once (often wrong), or by a search in order that may be given up
* with a solution: the prompt shows a full solution (then mostly answered at once, and right) or only the
  answer (then about as wordy as without)

Large models bring these habits along (docs/toy.md 2); here they are written in. What training does to
them, on trained and on other families, is not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.schema.common import RepromptTemplate
from selfdistill.schema.toy import TextShares, ToyMixture
from selfdistill.toy.problems import LABELS, OOD_FAMILIES, Problem, draw, numbers

#: The re-prompt that the base model was pretrained on: a run on the toy world must use exactly these texts.
REPROMPT = RepromptTemplate(
    frame="{prompt}{solution}{feedback} now solve",
    solution=" correct solution : {successful_previous_attempt}",
)
CHECKS_PER_PAGE = 10
LISTED_ON_A_PAGE = (4, 8)
RIGHT_ON_A_PAGE = 0.3
#: Families with facts of their own (`long` has those of `id`).
PAGE_FAMILIES = ("id", "mod", "sum")
#: How a candidate is proposed; the first entry list is for the first candidate.
FIRST_PROPOSALS = ("maybe", "perhaps", "might")
LATER_PROPOSALS = ("maybe", "perhaps", "might", "alternatively")
REJECTIONS = ("hmm no", "no wait", "actually no")
GUESSES = ("seems", "likely")
#: What a completion leaves out when its thinking is switched off.
_WORDS_OF_THOUGHT = frozenset(
    ["<think>", "</think>", *FIRST_PROPOSALS, *LATER_PROPOSALS, *GUESSES, *" ".join(REJECTIONS).split()]
) - {"no"}


@dataclass(frozen=True)
class Text:
    """One sequence: `prompt` is only read, `target` is learned; words are separated by spaces.

    `skipped` marks the words of `target` that are read only, too (numbers drawn at random).
    """

    kind: str
    prompt: str
    target: str
    skipped: frozenset[int] = frozenset()


class TextMaker:
    """Draws pretraining texts. A world of other problems overrides `_drawn`, `_textbook`, `_with_solution`, `_plain`.

    `chat` turns the text of a user message into the text of a whole prompt; `excluded` are questions
    that no text may be about (the evaluation problems); `end` closes an answer.
    """

    def __init__(
        self, mixture: TextShares, chat: Callable[[str], str], end: str, excluded: Set[str], rng: random.Random
    ) -> None:
        self._mixture, self._chat, self._end, self._excluded, self._rng = mixture, chat, end, excluded, rng

    def draw(self) -> Text:
        """One text of a random kind."""
        place = self._rng.random()
        if place < self._mixture.textbook:
            return self._textbook()
        if place < self._mixture.textbook + self._mixture.with_solution:
            return self._with_solution(self._problem())
        return self._plain(self._problem())

    def _problem(self) -> Any:
        while True:
            is_ood = self._rng.random() < self._mixture.ood
            problem = self._drawn(is_ood=is_ood)
            if problem.question not in self._excluded:
                return problem

    def _drawn(self, *, is_ood: bool) -> Any:
        return draw(self._rng.choice(OOD_FAMILIES) if is_ood else "id", self._rng)

    def _textbook(self) -> Text:
        """Checks of listed numbers in random order; which one comes next cannot be predicted and is not learned."""
        page = self._page()
        words: list[str] = []
        skipped: list[int] = []
        for _ in range(CHECKS_PER_PAGE):
            place = self._rng.randrange(len(page.candidates))
            number = page.candidates[place]
            skipped.append(len(words))
            words += [LABELS[place], str(number), *check(page, number), verdict(page, number)]
        return Text("textbook", page.question, " ".join(words), frozenset(skipped))

    def _page(self) -> Problem:
        """A congruence of any family with any number of listed numbers, of which several or none may be right."""
        while True:
            page = draw(self._rng.choice(PAGE_FAMILIES), self._rng)
            everything = numbers(page.shift)
            right = [z for z in everything if page.residue_of(z) == page.residue]
            listed = tuple(
                self._rng.choice(right if self._rng.random() < RIGHT_ON_A_PAGE else everything)
                for _ in range(self._rng.randint(*LISTED_ON_A_PAGE))
            )
            page = replace(page, candidates=listed)
            if page.question not in self._excluded:
                return page

    def _plain(self, problem: Problem) -> Text:
        if self._rng.random() < self._mixture.direct:
            return self._answer("direct", problem, problem.question, self._direct(problem))
        return self._answer("search", problem, problem.question, self._search(problem, self._mixture.give_up))

    def _with_solution(self, problem: Problem) -> Text:
        """The shown solution is right; it is itself an immediate answer or a search, as rollouts are."""
        is_full = self._rng.random() < 0.5
        shown = box(problem.answer)
        if is_full:
            is_short = self._rng.random() < self._mixture.direct * self._mixture.direct_correct
            shown = completion(["so"] if is_short else self._search(problem, give_up=0.0)[0], problem.answer)
        prompt = REPROMPT.frame.format(
            prompt=problem.question, solution=REPROMPT.solution.format(successful_previous_attempt=shown), feedback=""
        )
        share = self._mixture.full_solution_direct if is_full else self._mixture.answer_only_direct
        is_direct = self._rng.random() < share
        thought = (["so"], problem.answer) if is_direct else self._search(problem, give_up=0.0)
        return self._answer("full_solution" if is_full else "answer_only", problem, prompt, thought)

    def _direct(self, problem: Problem) -> tuple[list[str], int]:
        if self._rng.random() < self._mixture.direct_correct:
            return ["so"], problem.answer
        return ["so"], self._rng.choice(problem.candidates)

    def _search(self, problem: Problem, give_up: float) -> tuple[list[str], int]:
        """Candidates in order until one fits, or a guess among the untried after a failed check."""
        words: list[str] = []
        for place, number in enumerate(problem.candidates):
            words.append(self._rng.choice(LATER_PROPOSALS if place else FIRST_PROPOSALS))
            words += [LABELS[place], str(number), *check(problem, number)]
            if place == problem.answer_index:
                return [*words, "yes", "so"], number
            words.append(self._rng.choice(REJECTIONS))
            if self._rng.random() < give_up:
                guess = self._rng.choice(problem.candidates[place + 1 :])
                return [*words, self._rng.choice(GUESSES)], guess
        raise AssertionError("a problem has exactly one answer")

    def _answer(self, kind: str, problem: Problem, prompt: str, thought: tuple[list[str], int]) -> Text:
        return Text(kind, self._chat(prompt), f"{completion(*thought)} {self._end}")


class SwitchedTextMaker:
    """Draws texts with thinking, and texts with thinking switched off (`ThinkingOff`).

    `chat_on` and `chat_off` frame a user message with and without thinking. The solutions that prompts show come from
    either mode, whatever the mode of the prompt: a teacher that thinks may be shown what a student without wrote.
    """

    def __init__(
        self,
        mixture: ToyMixture,
        chat_on: Callable[[str], str],
        chat_off: Callable[[str], str],
        end: str,
        excluded: Set[str],
        rng: random.Random,
    ) -> None:
        self._off, self._rng = mixture.thinking_off, rng
        self._on_maker = TextMaker(mixture, lambda content: chat_on(self._shown(content)), end, excluded, rng)
        direct = mixture.model_copy(update={"direct": self._off.direct})
        self._off_maker = TextMaker(direct, lambda content: chat_off(self._shown(content)), end, excluded, rng)

    def draw(self) -> Text:
        """One text of a random mode and kind."""
        if self._is_off():
            text = self._off_maker.draw()
            return replace(text, target=without_thought(text.target))
        return self._on_maker.draw()

    def _is_off(self) -> bool:
        return self._rng.random() < self._off.share

    def _shown(self, content: str) -> str:
        return without_thought(content) if self._is_off() else content


def check(problem: Problem, number: int) -> list[str]:
    """`check r6`, or `check 8 r1` with the sum written out."""
    total = [str(number + problem.shift)] if problem.shift else []
    return ["check", *total, f"r{problem.residue_of(number)}"]


def verdict(problem: Problem, number: int) -> str:
    return "yes" if problem.residue_of(number) == problem.residue else "no"


def box(answer: int) -> str:
    return f"\\boxed{{ {answer} }}"


def completion(thought: list[str], answer: int) -> str:
    """`<think> ... 0 </think> \\boxed{ 0 }`: the answer closes the thought, too."""
    return f"<think> {' '.join(thought)} {answer} </think> {box(answer)}"


def without_thought(text: str) -> str:
    """`<think> maybe A 6 check r6 hmm no ... so 0 </think> \\boxed{ 0 }` as `A 6 check r6 no ... so 0 \\boxed{ 0 }`."""
    return " ".join(word for word in text.split() if word not in _WORDS_OF_THOUGHT)
