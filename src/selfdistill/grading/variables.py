"""Letters behind a number that are variables and no unit: math-verify reads 3t as 3 tons and 2 ab as 20 amperes."""

from __future__ import annotations

import re

from selfdistill.grading.units import read_unit

_ONE = re.compile(r"([+-]?[\d.]+)\s?([A-Za-z])")
_SOME = re.compile(r"(.*[\d}])\s?([A-Za-z]{2,3})", re.DOTALL)
#: Words and units of two or three letters, beside those of units.py.
_WORDS = frozenset(
    ("or", "and", "to", "mod", "sq", "kph", "kmh", "gal", "mol", "Pa", "Hz", "eV", "wk", "ct", "cts", "mos", "pts")
)


def ends_in_variables(text: str) -> bool:
    """Whether a gold answer is a number times one letter, or times two or three that name no unit."""
    some = _SOME.fullmatch(text)
    is_product = some is not None and r"\text" not in text and read_unit(some[2]) is None and some[2] not in _WORDS
    return is_product or _ONE.fullmatch(text) is not None


def with_variables(text: str) -> str:
    """Such an answer with each letter in braces, where math-verify looks for no unit; another as it is."""
    if found := _ONE.fullmatch(text):
        return f"{found[1]}{{{found[2]}}}"
    if found := _SOME.fullmatch(text):
        return found[1] + "".join(rf"\cdot {{{letter}}}" for letter in found[2])
    return text
