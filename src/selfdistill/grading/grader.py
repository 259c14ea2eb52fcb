"""From completions to grades: extraction, the fast path, and the pool for what is left; programs go to a sandbox."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from selfdistill.grading.agreement import align, decide
from selfdistill.grading.answer_line import extract_answer_line
from selfdistill.grading.choices import extract_choice, extract_choice_as_published
from selfdistill.grading.extraction import (
    bare,
    extract_box,
    extract_box_as_published,
    extract_last_answer,
    extract_last_number,
    is_boxed_letter_by_letter,
    strip_spaces,
    tidy,
    without_end_marks,
)
from selfdistill.grading.notation import rewrite
from selfdistill.grading.pool import WorkerPool
from selfdistill.grading.quick import decide_identical, decide_quickly

if TYPE_CHECKING:
    # The settings models load pydantic, several times slower than all of this package.
    from selfdistill.schema.common import ChoiceGrader, CodeGrader, Grader, MathGrader, PythonGraderEntry

#: `unreadable_gold`: nothing can be equal to the gold answer but its own text, which is not the model's mistake.
Outcome = Literal["correct", "wrong", "unparsed", "timeout", "unreadable_gold"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_BOX_READERS = {
    "extended": extract_last_answer, "math_verify": extract_box, "paper_reward": extract_box_as_published,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grade:
    """Verdict on one completion; `extracted` is the answer that was judged, "" where none was found.

    `feedback` says in words what is wrong with a program; other graders have none.
    """

    outcome: Outcome
    reward: float
    extracted: str
    feedback: str = ""


def grade(
    completions: Sequence[str],
    golds: Sequence[str],
    stop_reasons: Sequence[str],
    grader: Grader,
    pool: WorkerPool | None = None,
    questions: Sequence[str | None] = (),
) -> list[Grade]:
    """Grade completions against gold answers; reward 1.0 for correct, else 0.0 (`kind: python`: its own).

    Equal (answer, gold) pairs are compared once. `questions` go to functions of the user's, which may ask for them;
    no other grader reads them. `pool` defaults to one worker process for the whole program, started
    when first needed. Raises ValueError for unequal lengths or an unknown stop reason, UserError for a gold answer
    that is empty or no letter, RuntimeError where workers cannot start.
    """
    questions = questions or [None] * len(completions)
    if not len(completions) == len(golds) == len(stop_reasons) == len(questions):
        raise ValueError(
            f"unequal lengths: {len(completions)} completions, {len(golds)} golds, {len(stop_reasons)} stop reasons, "
            f"{len(questions)} questions"
        )
    unknown = set(stop_reasons) - {"eos", "length"}
    if unknown:
        raise ValueError(f"unknown stop reasons {sorted(unknown)}; known: eos, length")
    if grader.kind != "math" or grader.rules != "paper_reward":
        golds = [gold.strip() for gold in golds]
    if grader.kind == "code":
        return _grade_code(completions, golds, stop_reasons, grader, pool.processes if pool else 1)
    if grader.kind == "python":
        return _grade_python(completions, golds, questions, stop_reasons, grader, pool or _shared_pool())
    _check_golds(golds, grader)
    answers = _extract_all(completions, golds, grader)
    is_cut = [grader.requires_eos and reason == "length" for reason in stop_reasons]
    pairs = list(zip(answers, golds, strict=True))
    # A completion that may not count is never compared; neither is an absent answer.
    verdicts = _judge([pair for pair, cut in zip(pairs, is_cut, strict=True) if pair[0] and not cut], grader, pool)
    outcomes: list[Outcome] = [
        "unparsed" if not pair[0] else "wrong" if cut else verdicts[pair]
        for pair, cut in zip(pairs, is_cut, strict=True)
    ]
    return [
        Grade(outcome, float(outcome == "correct"), answer) for outcome, answer in zip(outcomes, answers, strict=True)
    ]


def check_machine(grader: Grader) -> None:
    """Raises UserError where this machine cannot grade at all: better now than after hours of sampling."""
    if grader.kind == "code":
        from selfdistill.grading.programs import choose_backend

        choose_backend(grader.allow_unsandboxed)
    elif grader.kind == "python":
        from selfdistill.grading.function import check_function

        check_function(grader)


def shown_answer(gold: str, grader: Grader) -> str:
    """The gold answer as tables of completions show it: the tests of a program are megabytes, and stand elsewhere."""
    if grader.kind != "code":
        return gold
    from selfdistill.grading.programs import describe_task

    return describe_task(gold)


def _grade_code(
    completions: Sequence[str],
    golds: Sequence[str],
    stop_reasons: Sequence[str],
    grader: CodeGrader,
    processes: int,
) -> list[Grade]:
    """The same for programs: equal (program, task) pairs run once, `processes` of them at a time."""
    from selfdistill.grading.programs import CUT_OFF, NO_PROGRAM, extract_program, grade_programs

    pairs = [(extract_program(text), gold) for text, gold in zip(completions, golds, strict=True)]
    is_cut = [grader.requires_eos and reason == "length" for reason in stop_reasons]
    distinct = list(dict.fromkeys(pair for pair, cut in zip(pairs, is_cut, strict=True) if pair[0] and not cut))
    verdicts = dict(zip(distinct, grade_programs(distinct, grader, processes), strict=True))
    grades = []
    for pair, cut, reason in zip(pairs, is_cut, stop_reasons, strict=True):
        if not pair[0]:
            grades.append(Grade("unparsed", 0.0, "", CUT_OFF if reason == "length" else NO_PROGRAM))
        elif cut:
            grades.append(Grade("wrong", 0.0, pair[0], CUT_OFF))
        else:
            verdict = verdicts[pair]
            grades.append(Grade(verdict.outcome, float(verdict.outcome == "correct"), pair[0], verdict.feedback))
    return grades


def _grade_python(
    completions: Sequence[str],
    golds: Sequence[str],
    questions: Sequence[str | None],
    stop_reasons: Sequence[str],
    grader: PythonGraderEntry,
    pool: WorkerPool,
) -> list[Grade]:
    """The same by a function of the user's, called once for equal (completion, gold, question)."""
    from selfdistill.grading.function import CORRECT_FROM, call_function

    texts = [
        (completion, gold) if question is None else (completion, gold, question)
        for completion, gold, question in zip(completions, golds, questions, strict=True)
    ]
    is_cut = [grader.requires_eos and reason == "length" for reason in stop_reasons]
    distinct = list(dict.fromkeys(called for called, cut in zip(texts, is_cut, strict=True) if not cut))
    rewards = dict(zip(distinct, call_function(distinct, grader, pool), strict=True))
    grades = []
    for called, cut in zip(texts, is_cut, strict=True):
        reward = 0.0 if cut else rewards[called]
        if reward is None or isinstance(reward, str):
            grades.append(Grade("unparsed" if reward is None else "timeout", 0.0, ""))
        else:
            grades.append(Grade("correct" if reward >= CORRECT_FROM else "wrong", reward, ""))
    return grades


def _extract_all(completions: Sequence[str], golds: Sequence[str], grader: MathGrader | ChoiceGrader) -> list[str]:
    """The answer of each completion, "" where there is none."""
    answers = [_extract(completion, grader) for completion in completions]
    if grader.kind == "math":
        odd = {gold for gold in set(golds) if _is_lost(gold, _BOX_READERS[grader.rules])}
        for place, (completion, gold) in enumerate(zip(completions, golds, strict=True) if odd else ()):
            if gold in odd and is_boxed_letter_by_letter(completion, gold, grader.scope_characters):
                answers[place] = gold
    return answers


def _is_lost(gold: str, read: Callable[[str], str]) -> bool:
    """Whether the reader does not find this text in a box: unmatched braces, a placeholder, nothing but end marks."""
    found = read(f"\\boxed{{0}}, so in the end \\boxed{{{gold}}}")
    return not found or found not in (gold, tidy(gold), bare(gold))


def _extract(completion: str, grader: MathGrader | ChoiceGrader) -> str:
    if grader.kind == "choice":
        published = grader.rules == "paper_reward"
        return extract_choice_as_published(completion) if published else extract_choice(completion, grader.choices)
    answer = _BOX_READERS[grader.rules](completion, grader.scope_characters)
    if answer or grader.fallback == "none":
        return answer
    in_scope = completion if grader.scope_characters is None else completion[-grader.scope_characters :]
    return extract_answer_line(in_scope) if grader.fallback == "answer_line" else extract_last_number(in_scope)


def _judge(pairs: Sequence[tuple[str, str]], grader: Grader, pool: WorkerPool | None) -> dict[tuple[str, str], Outcome]:
    """Verdict of each distinct (answer, gold) pair."""
    if grader.kind == "choice":
        return {pair: "correct" if pair[0] == pair[1].upper() else "wrong" for pair in pairs}
    quickly = decide_identical if grader.rules == "paper_reward" else decide_quickly
    verdicts = {pair: quickly(*pair) for pair in pairs}
    pending = {pair: pair for pair, verdict in verdicts.items() if verdict is None}
    if grader.rules != "paper_reward":
        # The end mark of an answer is dropped, so the gold answer's is.
        verdicts |= {pair: "correct" for pair in pending if pair[0] in (tidy(pair[1]), bare(pair[1]))}
        undecided = [pair for pair in pending if verdicts[pair] is None]
        pending = {pair: (pair[0], without_end_marks(bare(pair[1])) or pair[1]) for pair in undecided}
    if grader.rules == "extended":
        pending = _rewrite(pending, verdicts)
    if pending:
        unique = list(dict.fromkeys(pending.values()))
        outcomes = (pool or _shared_pool()).compare(unique, grader.timeout_seconds, grader.rules)
        found = dict(zip(unique, outcomes, strict=True))
        verdicts |= {pair: found[asked] for pair, asked in pending.items()}
    return verdicts


def _rewrite(
    pending: Mapping[tuple[str, str], tuple[str, str]], verdicts: dict[tuple[str, str], Outcome | None]
) -> dict[tuple[str, str], tuple[str, str]]:
    """What to ask math-verify for each pair that plain notation does not decide; decided ones go to `verdicts`."""
    left = {}
    for pair, asked in pending.items():
        answer, gold = map(rewrite, asked)
        verdict = decide(answer, gold)
        if verdict is None:
            left[pair] = align(answer, gold)
        else:
            verdicts[pair] = verdict
    return left


def _check_golds(golds: Sequence[str], grader: Grader) -> None:
    letters = set(grader.choices.upper()) if grader.kind == "choice" else None
    for gold in golds:
        if not strip_spaces(gold) or (letters is not None and gold.upper() not in letters):
            from selfdistill.schema.errors import UserError

            wanted = "a gold answer" if letters is None else f"one of the letters {grader.choices}"
            raise UserError(f"column answer holds `{gold}` where {wanted} belongs; fix the data set or its field map.")


_shared: WorkerPool | None = None
_shared_owner = 0


def _shared_pool() -> WorkerPool:
    """One pool per process; a forked child must not talk through its parent's pipes."""
    global _shared, _shared_owner
    if _shared is None or _shared_owner != os.getpid():
        _shared, _shared_owner = WorkerPool(), os.getpid()
        atexit.register(_shared.close)
    return _shared
