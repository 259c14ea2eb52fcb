r"""Verdicts that need no algebra, equal to math-verify's: identical texts, and numbers.

Most answers of a model are the gold answer letter by letter, or a wrong number. Two texts count as identical if they
differ in spaces that LaTeX ignores and in \dfrac for \frac. Numbers are integers, fractions and decimals:

    neither is a decimal     equal if and only if the values are
    one is a decimal         math-verify rounds both to six places: values further apart than 0.00001 are unequal,
                             exactly equal ones are equal; what lies between is left to it
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal

#: Longer answers are not compared: no answer of the benchmarks is longer than 53 characters, and length is what makes
#: parsers hang.
MAX_ANSWER_CHARACTERS = 256

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(
    r"(-?)(?:([0-9]{1,15})|([0-9]{0,9})\.([0-9]{1,6})|([0-9]{1,15})/([0-9]{1,15})|\\frac\{([0-9]{1,15})\}\{([0-9]{1,15})\})"
)
_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
#: Spaces beside operators and brackets; not an escaped space, and none that could part or join digits of one number.
_IDLE_SPACE = re.compile(
    r"(?<![\\\s])[ \t\n]+(?=[-+*/=()\[\]{}])|(?<=[-+*/=()\[{}])[ \t\n]+|(?<=,)[ \t\n]+(?![0-9]{3})"
)


def decide_quickly(answer: str, gold: str) -> Literal["correct", "wrong", "unparsed"] | None:
    """The verdict where no algebra is needed, else None; "unparsed" for an answer that is too long to compare."""
    if answer == gold:
        return "correct"
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return "unparsed"
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return "correct" if int(answer) == int(gold) else "wrong"
    if len(gold) > MAX_ANSWER_CHARACTERS:
        return None
    answer, gold = _without_idle_space(answer), _without_idle_space(gold)
    return "correct" if answer == gold else _compare_numbers(answer, gold)


def decide_identical(answer: str, gold: str) -> Literal["correct", "unparsed"] | None:
    """The verdict on equal texts alone, as the official reward has it."""
    if answer == gold:
        return "correct"
    return "unparsed" if len(answer) > MAX_ANSWER_CHARACTERS else None


def _without_idle_space(text: str) -> str:
    return _IDLE_SPACE.sub("", _FRACTION.sub(r"\\frac", text))


def _compare_numbers(answer: str, gold: str) -> Literal["correct", "wrong"] | None:
    given, wanted = read_number(answer), read_number(gold)
    if given is None or wanted is None:
        return None
    if given == wanted:
        return "correct"
    is_rounded = "." in answer or "." in gold
    return "wrong" if not is_rounded or abs(given - wanted) > Fraction(1, 100_000) else None


def read_number(text: str) -> Fraction | None:
    """The value of an integer, fraction or decimal in plain notation; None for anything else."""
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    sign, integer, whole, decimals, a, b, c, d = found.groups()
    if decimals is not None:
        value = Fraction(f"{whole or 0}.{decimals}")
    elif integer is not None:
        value = Fraction(int(integer))
    else:
        numerator, denominator = int(a or c), int(b or d)
        if not denominator:
            return None
        value = Fraction(numerator, denominator)
    return -value if sign else value
