"""The pretraining text of chain problems: everything that is *assumed* about the base model that has several decisions.

    <think> maybe A 7 check r2 yes now 7 perhaps D 4 check 11 r4 hmm no so E 8 so 8 </think> \\boxed{ 8 }

Every choice of a number is a decision of its own. It is doubted (an epistemic word, the number, its check) or not
("so", the number: taken without a check). When a list is used up without a number that fits, the last choice was a dead
end: doubted, it is given up ("wait", and the search goes on where it was left); not doubted, the answer is guessed.
Decisions are independent of each other: whether one is doubted says nothing about the next. What differs between
prompts is only the rate of doubt, and what is known. Nothing depends on the family.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from selfdistill.toy.chains import CHAINS, OOD_CHAINS, Chain, draw_chain, draw_lists
from selfdistill.toy.mixture import (
    FIRST_PROPOSALS,
    GUESSES,
    LATER_PROPOSALS,
    REJECTIONS,
    REPROMPT,
    Text,
    TextMaker,
    box,
    completion,
)

CHECKS_PER_PAGE = 10
#: A shown solution is a completion that ended right, of a policy of any rate of doubt from this one up.
LEAST_SHOWN_DOUBT = 0.3
RETREATS = ("wait", "actually")


@dataclass(frozen=True)
class _Knowledge:
    """`doubt`: rate; `intuition`: how often an unchecked choice is right; `is_direct`: only right numbers are named;
    `knows_answer`: unchecked choices from the last list, and guesses, are right."""

    doubt: float
    intuition: float = 0.0
    is_direct: bool = False
    knows_answer: bool = False


class ChainTextMaker(TextMaker):
    """Draws pretraining texts of chain problems; `mixture` is a `ChainMixture`."""

    def _drawn(self, *, is_ood: bool) -> Chain:
        return draw_chain(self._rng.choice(OOD_CHAINS) if is_ood else "chain", self._rng)

    def _plain(self, problem: Chain) -> Text:
        known = _Knowledge(self._mixture.doubt, self._mixture.intuition)
        return self._answer("search", problem.question, problem, known)

    def _textbook(self) -> Text:
        """Checks of numbers in random order; which one comes next cannot be predicted and is not learned."""
        while True:
            page = draw_lists(self._rng.choice(tuple(CHAINS)), self._rng)
            if page.question not in self._excluded:
                break
        words: list[str] = []
        skipped: list[int] = []
        checks = 0
        while checks < CHECKS_PER_PAGE:
            total = 0
            for stage, numbers in enumerate(page.lists):
                if stage:
                    skipped.append(len(words))
                    words += ["now", str(total)]
                for _ in range(self._rng.randint(1, 3)):
                    place = self._rng.randrange(len(numbers))
                    skipped.append(len(words))
                    words += [*_named(page, stage, place), *_check(page, stage, total, place)]
                    words.append("yes" if page.fits(stage, total + numbers[place]) else "no")
                    checks += 1
                total += numbers[place]
        return Text("textbook", page.question, " ".join(words), frozenset(skipped))

    def _with_solution(self, problem: Chain) -> Text:
        is_full = self._rng.random() < 0.5
        if is_full:
            shown = self._right_completion(problem)
            is_direct = self._rng.random() < self._mixture.full_solution_direct
            known = _Knowledge(self._mixture.full_solution_doubt, 1.0, is_direct, knows_answer=True)
        else:
            shown = box(problem.answer)
            known = _Knowledge(self._mixture.answer_only_doubt, self._mixture.intuition, knows_answer=True)
        prompt = REPROMPT.frame.format(
            prompt=problem.question, solution=REPROMPT.solution.format(successful_previous_attempt=shown), feedback=""
        )
        return self._answer("full_solution" if is_full else "answer_only", prompt, problem, known)

    def _right_completion(self, problem: Chain) -> str:
        while True:
            known = _Knowledge(self._rng.uniform(LEAST_SHOWN_DOUBT, 1.0), self._mixture.intuition)
            words, answer = Search(problem, known, self._rng).run()
            if answer == problem.answer:
                return completion(words, answer)

    def _answer(self, kind: str, prompt: str, problem: Chain, known: _Knowledge) -> Text:
        thought = Search(problem, known, self._rng).run()
        while known.knows_answer and thought[1] != problem.answer:
            # An unchecked number in the middle may let a wrong one pass at the end.
            thought = Search(problem, known, self._rng).run()
        return Text(kind, self._chat(prompt), f"{completion(*thought)} {self._end}")


class Search:
    """A depth-first search through one problem whose decisions are doubted or not."""

    def __init__(self, problem: Chain, known: _Knowledge, rng: random.Random) -> None:
        self._problem, self._known, self._rng = problem, known, rng
        self._words: list[str] = []
        self._is_on_track = True

    def run(self) -> tuple[list[str], int]:
        """The words before the answer, and the answer."""
        found = self._from(0, 0)
        if found is None:
            found = self._guess()
        return self._words, found

    def _from(self, stage: int, total: int) -> int | None:
        """The answer, or None where the choices before this stage are given up."""
        numbers = self._problem.lists[stage]
        untried = list(range(len(numbers)))
        is_first = True
        while untried:
            is_doubted = self._doubts()
            place = self._choice(stage, untried, is_doubted)
            untried = [other for other in untried if other != place]
            if not self._accepts(stage, total, place, is_doubted, is_first):
                is_first = False
                continue
            is_first = False
            if stage + 1 == len(self._problem.lists):
                self._words.append("so")
                return numbers[place]
            before, self._is_on_track = self._is_on_track, self._is_on_track and place == self._problem.chain[stage]
            self._words += ["now", str(total + numbers[place])]
            found = self._from(stage + 1, total + numbers[place])
            self._is_on_track = before
            if found is not None:
                return found
            if untried and stage:
                self._words += ["now", str(total)]
        if not stage:
            return None
        if not self._doubts():
            return self._guess()
        self._words.append(self._rng.choice(RETREATS))
        return None

    def _doubts(self) -> bool:
        return self._rng.random() < self._known.doubt

    def _choice(self, stage: int, untried: list[int], is_doubted: bool) -> int:
        """The place of the number that is proposed: in order where it will be checked, else by intuition."""
        right = self._problem.chain[stage]
        if is_doubted and not self._known.is_direct:
            return untried[0]
        if self._known.is_direct or (self._known.knows_answer and stage + 1 == len(self._problem.lists)):
            return right
        can_know = self._is_on_track and right in untried
        return right if can_know and self._rng.random() < self._known.intuition else self._rng.choice(untried)

    def _accepts(self, stage: int, total: int, place: int, is_doubted: bool, is_first: bool) -> bool:
        """Write the proposal, and its check where it is doubted; whether it is taken."""
        named = _named(self._problem, stage, place)
        if not is_doubted:
            self._words += ["so", *named]
            return True
        word = self._rng.choice(FIRST_PROPOSALS if is_first else LATER_PROPOSALS)
        self._words += [word, *named, *_check(self._problem, stage, total, place)]
        if self._problem.fits(stage, total + self._problem.lists[stage][place]):
            self._words.append("yes")
            return True
        self._words.append(self._rng.choice(REJECTIONS))
        return False

    def _guess(self) -> int:
        self._words.append(self._rng.choice(GUESSES))
        return self._problem.answer if self._known.knows_answer else self._rng.choice(self._problem.lists[-1])


def _named(problem: Chain, stage: int, place: int) -> list[str]:
    return [problem.label(stage, place), str(problem.lists[stage][place])]


def _check(problem: Chain, stage: int, total: int, place: int) -> list[str]:
    """`check r2` in the first list, `check 15 r1` with the total written out in later ones."""
    after = total + problem.lists[stage][place]
    return ["check", *([str(after)] if stage else []), f"r{problem.residue_of(stage, after)}"]
