"""What a single token or completion says of a distillation: classes of tokens, forks, loops (docs/method.md 13.2).

Pure functions on ids, texts and numbers. A *fork* is a position at which the student is undecided; the teacher that has
read a solution may be decided there, or hesitate as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EPISTEMIC, FIRST_THOUGHT, NUMBER, OTHER = "epistemic", "first thought word", "number", "other"
CLASSES = (EPISTEMIC, FIRST_THOUGHT, NUMBER, OTHER)
QUARTERS = ("1st quarter", "2nd quarter", "3rd quarter", "4th quarter")
#: Positions from the first token on that are counted one by one; the rest is together.
SINGLE_POSITIONS = 4
#: Tokens at the start of a completion within which an opening mark of the thinking must end.
_OPENING_TOKENS = 8
#: A loop repeats up to so many tokens, so many times, up to the end of the completion.
LOOP_PERIOD, LOOP_REPEATS = 64, 4


class Forks(NamedTuple):
    """Positions at which the student is undecided, and those of them at which the teacher is, too."""

    all: int
    undecided: int


def token_classes(texts: Sequence[str], words: Sequence[str], openings: Sequence[str]) -> list[str]:
    """The class of each token of a completion, given each token's own text.

    The first thought word is one class whatever it is; then a token that is an epistemic word by itself; then a token
    with a digit. `openings`: marks before the thinking, such as <think>.
    """
    lexicon = {word.lower() for word in words}
    first = first_thought(texts, openings)
    return [
        FIRST_THOUGHT
        if place == first
        else EPISTEMIC
        if text.strip().lower() in lexicon
        else NUMBER
        if any(map(str.isdigit, text))
        else OTHER
        for place, text in enumerate(texts)
    ]


def first_thought(texts: Sequence[str], openings: Sequence[str]) -> int | None:
    """Place of the first token after the opening mark that is not blank; from the start where there is no mark."""
    said, start = "", 0
    for place, text in enumerate(texts[:_OPENING_TOKENS]):
        said += text
        if said.rstrip().endswith(tuple(openings)):
            start = place + 1
            break
    return next((place for place in range(start, len(texts)) if texts[place].strip()), None)


def quarter(place: int, length: int) -> str:
    """The quarter of a completion of `length` tokens in which a token lies."""
    return QUARTERS[4 * place // length]


def position(place: int) -> str:
    """Names of the first positions; `4 and later` for the rest, counted from 0."""
    return str(place) if place < SINGLE_POSITIONS else f"{SINGLE_POSITIONS} and later"


def forks(student_entropies: NDArray[np.float64], teacher_entropies: NDArray[np.float64], least: float) -> Forks:
    """Fork rate = undecided / all: where the student's entropy is above `least` nats, is the teacher's as well?"""
    is_fork = np.asarray(student_entropies) > least
    return Forks(int(is_fork.sum()), int((is_fork & (np.asarray(teacher_entropies) > least)).sum()))


def ends_in_loop(ids: Sequence[int]) -> bool:
    """Whether a completion ends in LOOP_REPEATS or more equal pieces of at most LOOP_PERIOD tokens."""
    for period in range(1, min(LOOP_PERIOD, len(ids) // LOOP_REPEATS) + 1):
        tail = ids[len(ids) - LOOP_REPEATS * period :]
        if all(tail[place] == tail[place + period] for place in range(len(tail) - period)):
            return True
    return False


def distinct_answers(answers: Sequence[str]) -> int:
    """Different answers among the samples of one problem; those without one do not count."""
    return len({answer for answer in answers if answer})


def cuts(classes: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(name of a way to divide the tokens, the part of each token)."""
    length = len(classes)
    yield "class", list(classes)
    yield "quarter", [quarter(place, length) for place in range(length)]
    yield "position", [position(place) for place in range(length)]
