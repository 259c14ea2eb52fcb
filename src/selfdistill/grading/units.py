"""Units of measurement: which quantity a unit measures, and how many of the base unit it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_LENGTH = {
    "mm": "1/1000", "millimeter": "1/1000", "cm": "1/100", "centimeter": "1/100", "dm": "1/10", "decimeter": "1/10",
    "m": "1", "meter": "1", "km": "1000", "kilometer": "1000", "in": "127/5000", "inch": "127/5000",
    "inches": "127/5000", "ft": "381/1250", "foot": "381/1250", "feet": "381/1250", "yd": "1143/1250",
    "yard": "1143/1250", "mi": "201168/125", "mile": "201168/125",
}  # fmt: skip
_TIME = {
    "s": "1", "sec": "1", "second": "1", "min": "60", "minute": "60", "h": "3600", "hr": "3600", "hour": "3600",
    "day": "86400", "week": "604800",
}  # fmt: skip
_MASS = {
    "mg": "1/1000", "milligram": "1/1000", "g": "1", "gram": "1", "kg": "1000", "kilogram": "1000",
    "lb": "45359237/100000",
    "pound": "45359237/100000", "oz": "45359237/1600000", "ounce": "45359237/1600000",
}  # fmt: skip
_MONEY = {"dollar": "1", "buck": "1", "cent": "1/100", "penny": "1/100", "pennies": "1/100", "$": "1"}
_VOLUME = {"ml": "1/1000000", "milliliter": "1/1000000", "cc": "1/1000000", "l": "1/1000", "liter": "1/1000"}
_ANGLE = {"degree": "1", "deg": "1", "°": "1"}
_YEARS = {"year": "12", "yr": "12", "month": "1"}
_TEMPERATURE = {"celsius": "celsius", "fahrenheit": "fahrenheit", "kelvin": "kelvin"}

#: Name -> (dimensions, how many base units). A year is not a fixed number of days.
_UNITS: dict[str, tuple[dict[str, int], Fraction]] = {
    name: (dimensions, Fraction(factor))
    for dimensions, table in (
        ({"length": 1}, _LENGTH), ({"time": 1}, _TIME), ({"mass": 1}, _MASS), ({"money": 1}, _MONEY),
        ({"length": 3}, _VOLUME), ({"angle": 1}, _ANGLE), ({"calendar": 1}, _YEARS),
    )
    for name, factor in table.items()
}  # fmt: skip
_UNITS |= {name: ({name: 1}, Fraction(1)) for name in _TEMPERATURE}
_UNITS["mph"] = ({"length": 1, "time": -1}, Fraction("201168/125") / 3600)
_UNITS["radian"] = _UNITS["rad"] = ({"radian": 1}, Fraction(1))

_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTER_POWERS = {"squared": 2, "cubed": 3}
_FACTOR = re.compile(
    r"\s*(/|per\b|a(?=\s(?:second|minute|hour|day|week)\b)|an(?=\shour\b))?\s*([A-Za-z$°]+)\.?\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?"
)


@dataclass(frozen=True)
class Unit:
    """Dimensions with their exponents, sorted; and the number of base units."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Fraction


@lru_cache(maxsize=1024)
def read_unit(text: str) -> Unit | None:
    """The unit that words such as `square feet`, `km/h` or `cents per mile` name; None where one is not known."""
    dimensions: dict[str, int] = {}
    factor = Fraction(1)
    place, power, last = 0, 1, None
    text = text.strip().replace("-", " ")
    while place < len(text):
        found = _FACTOR.match(text, place)
        if not found or found.end() == place:
            return None
        place = found.end()
        word = _singular(found[2])
        if word in _POWERS and not found[1]:
            power = _POWERS[word]
            continue
        if word in _AFTER_POWERS and last:
            extra = _AFTER_POWERS[word] - 1
            factor *= last[1] ** extra
            for name, exponent in last[0].items():
                dimensions[name] += exponent * extra
            continue
        if word not in _UNITS:
            return None
        exponent = power * int(found[3] or 1) * (-1 if found[1] else 1)
        last = _UNITS[word]
        factor *= last[1] ** exponent
        for name, count in last[0].items():
            dimensions[name] = dimensions.get(name, 0) + count * exponent
        power = 1
    kept = tuple(sorted((name, exponent) for name, exponent in dimensions.items() if exponent))
    return Unit(kept, factor) if kept else None


def _singular(word: str) -> str:
    """A name as the table has it: `Metres` as `meter`, `km` as it is."""
    if word in _UNITS:
        return word
    word = word.lower()
    word = {"metre": "meter", "litre": "liter"}.get(word.removesuffix("s"), word)
    for ending, other in (("metre", "meter"), ("metres", "meter"), ("litre", "liter"), ("litres", "liter")):
        if word.endswith(ending):
            word = word.removesuffix(ending) + other
    if word in _UNITS or word in _POWERS:
        return word
    return word.removesuffix("s")
