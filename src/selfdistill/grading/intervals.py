r"""Inequalities in one variable as the intervals that they say: `x < 2 \text{ or } x \ge 3`."""

from __future__ import annotations

import re

_SIGN = r"(<|>|\\le|\\ge|\\ne)(?![A-Za-z])"
_NAME = r"[A-Za-z](?:_\{?\w\}?)?|[a-z]\(x\)"
_VALUE = r"([^<>=]+?)"
_ONE = re.compile(rf"\s*(?:{_NAME})\s*{_SIGN}\s*{_VALUE}\s*")
_TURNED = re.compile(rf"\s*{_VALUE}\s*{_SIGN}\s*(?:{_NAME})\s*")
_TWO = re.compile(rf"\s*{_VALUE}\s*{_SIGN}\s*(?:{_NAME})\s*{_SIGN}\s*{_VALUE}\s*")
_OR = re.compile(
    r"\s*(?:\\text\s*\{\s*,?\s*or\s*\}|,?\s+or\s|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])|\\cup(?![A-Za-z]))\s*"
)
_BETWEEN_INTERVALS = re.compile(
    r"(?<=[\])])\s*(?:\\text\s*\{\s*,?\s*(?:or|and)\s*\}|,?\s+(?:or|and)\s+)\s*(?=(?:\\left)?[\[(])"
)
_MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}


def as_intervals(text: str) -> str:
    """The union of intervals that an inequality, or several joined by `or`, says; any other text as it is."""
    text = _BETWEEN_INTERVALS.sub(r"\\cup ", text)
    parts = [_interval(part) for part in _OR.split(text)]
    return text if None in parts else r"\cup ".join(parts)


def _interval(text: str) -> str | None:
    if found := _TWO.fullmatch(text):
        low, first, second, high = found.groups()
        if {first, second} <= {"<", r"\le"}:
            return f"{'(' if first == '<' else '['}{low},{high}{')' if second == '<' else ']'}"
        if {first, second} <= {">", r"\ge"}:
            return f"{'(' if second == '>' else '['}{high},{low}{')' if first == '>' else ']'}"
        return None
    if found := _ONE.fullmatch(text):
        sign, value = found.groups()
    elif found := _TURNED.fullmatch(text):
        value, sign = found[1], _MIRRORED[found[2]]
    else:
        return text.strip() if re.fullmatch(r"\s*(?:\\left)?[\[(].*[\])]\s*", text) else None
    return {
        "<": rf"(-\infty,{value})", r"\le": rf"(-\infty,{value}]",
        ">": rf"({value},\infty)", r"\ge": rf"[{value},\infty)",
        r"\ne": rf"(-\infty,{value})\cup ({value},\infty)",
    }[sign]  # fmt: skip
