r"""Numbers with units: the unit is dropped where one side has none, and converted where both have (500 cm for 5 m)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfdistill.grading.units import Unit, read_unit

_FRACTION_OF_UNITS = re.compile(
    r"\\frac\{\s*\\(?:text|mathrm)\{([A-Za-z. ]+)\}(\^\{?\d\}?)?\s*\}"
    r"\{\s*\\(?:text|mathrm)\{([A-Za-z. ]+)\}(\^\{?\d\}?)?\s*\}\Z"
)
_RATIO_OF_UNITS = re.compile(
    r"\\(?:text|mathrm)\{([A-Za-z. ]+)\}\s*/\s*\\(?:text|mathrm)\{([A-Za-z. ]+)\}(\^\{?\d\}?)?\Z"
)
_STYLED = re.compile(
    r"(?P<core>.*[\d})A-Za-z%]|)\s*\\(?:text|mathrm)\s*\{(?P<unit>[^{}\d]*)\}\s*(?P<power>\^\s*\{?\s*-?\d\s*\}?)?",
    re.DOTALL,
)
_TYPED = re.compile(
    r"(?P<core>.*[\d}])\s+(?P<unit>[A-Za-z]{2,}(?:[ .]+[A-Za-z]+|\s*/\s*[A-Za-z]+)*\.?)"
    r"(?P<power>\s*\^\s*\{?\s*\d\s*\}?)?",
    re.DOTALL,
)
_JOINED = re.compile(
    r"(?P<core>-?[\d.]+)(?P<unit>(?:mm|cm|km|kg|mg|ft|mph|km/h|m/s|mL|ml|°))(?P<power>\^\s*\{?\s*\d\s*\}?)?"
)
_DOLLARS = re.compile(r"(?P<sign>-?)\s*\\?\$\s*(?=[\d.\\-])")
_DEGREES = re.compile(r"\^\\circ\s*(?:(?:\\(?:text|mathrm)\s*\{\s*)?([CFK])\s*\}?)?\s*\Z")
_COMMAND = re.compile(r"\\[A-Za-z]+")
#: Words after a number that are part of the mathematics, or that math-verify reads by itself.
_NO_UNITS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "mod", "and", "or", "to", "inf",
     "infinity", "percent", "percentage", "pct", "less", "more", "is", "if", "when", "for", "where")
)  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """A number as text; the words behind it, "" for none; and the unit that they name, where it is known."""

    number: str
    words: str = ""
    unit: Unit | None = None


def split_quantity(answer: str, gold: str) -> tuple[str, str]:
    """(answer, gold) as numbers in one unit; units that measure different things stay, and make the sides unequal."""
    given, wanted = _quantity(answer, gold), _quantity(gold, gold)
    if given.unit and wanted.unit:
        if given.unit.dimensions == wanted.unit.dimensions:
            ratio = given.unit.factor / wanted.unit.factor
            number = given.number
            if ratio != 1:
                number = rf"({number})\cdot\frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
            return number, wanted.number
        measured = {given.unit.dimensions[0][0], wanted.unit.dimensions[0][0]}
        if measured == {"angle", "radian"}:
            return _in_radians(given), _in_radians(wanted)
        if "angle" in measured and measured & {"celsius", "fahrenheit"}:
            return given.number, wanted.number  # Degrees, of a scale that one side leaves out.
        return f"{given.number} u", f"{wanted.number} v"
    for one, other in ((given, wanted), (wanted, given)):
        # An angle with pi and without a unit is in radians.
        if one.unit and one.unit.dimensions == (("angle", 1),) and not other.words and r"\pi" in other.number:
            return _in_radians(given), _in_radians(wanted)
    return given.number, wanted.number


def _in_radians(quantity: Quantity) -> str:
    if quantity.unit and quantity.unit.dimensions == (("angle", 1),):
        return rf"({quantity.number})\cdot\frac{{\pi}}{{180}}"
    return quantity.number


def _quantity(text: str, gold: str) -> Quantity:
    text = _FRACTION_OF_UNITS.sub(
        lambda f: rf"\\text{{{f[1]}{f[2] or ''}/{f[3]}{f[4] or ''}}}".replace("\\\\", "\\"), text
    )
    text = _RATIO_OF_UNITS.sub(lambda f: "\\text{" + f"{f[1]}/{f[2]}" + "}" + (f[3] or ""), text)
    if degrees := _DEGREES.search(text):
        name = {"C": "celsius", "F": "fahrenheit", "K": "kelvin", None: "degree"}[degrees[1]]
        return Quantity(text[: degrees.start()].strip(), name, read_unit(name))
    for pattern in (_STYLED, _JOINED, _TYPED):
        found = pattern.fullmatch(text)
        if not found or (pattern is _TYPED and not _is_unit_position(found["unit"], gold)):
            continue
        words = found["unit"].strip()
        unit = read_unit(words + (found["power"] or ""))
        if found["core"].strip() and (
            unit or (words and not found["power"] and not _NO_UNITS & set(words.lower().split()))
        ):
            core = _DOLLARS.sub(r"\g<sign>", found["core"], count=1)
            return Quantity(core.strip(), words, unit)
    dollars = _DOLLARS.match(text)
    if dollars:
        return Quantity((dollars["sign"] + text[dollars.end() :]).strip(), "$", read_unit("$"))
    return Quantity(text)


def _is_unit_position(words: str, gold: str) -> bool:
    """Typed words are a unit where the gold answer has no variables, and they are no functions."""
    has_variable = re.search(r"[A-Za-z]", _COMMAND.sub("", re.sub(r"\\(?:text|mathrm)\s*\{[^{}]*\}", "", gold)))
    typed = _TYPED.fullmatch(gold)
    names = set(re.split(r"[ ./]+", words.lower()))
    return (
        has_variable is None or (typed is not None and read_unit(typed["unit"]) is not None)
    ) and not _NO_UNITS & names
