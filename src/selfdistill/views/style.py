"""One look for every method (name, colour, marker) and one wording for every number, in every figure and table.

Figures are drawn with the light colours; in the page each becomes a CSS variable, so that dark mode has its own. The
hues are those of Okabe and Ito, which people with any common colour blindness tell apart; markers differ as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from selfdistill.views.measures import DENSITY, EPISTEMIC, LENGTH, SCORE


@dataclass(frozen=True)
class Look:
    """How one experiment appears: `key` names its CSS variable."""

    key: str
    label: str
    light: str
    dark: str
    marker: str
    line: str = "-"


BASE_LOOK = Look("base", "base model", "#6b7280", "#9aa3b2", "o")
PAPER = Look("paper", "paper", "#111827", "#e5e7eb", "D")
#: (method, context or arm).
Kind = tuple[str, str | None]
#: The paper's methods.
GRPO, SDPO, NO_THINK = ("grpo", None), ("sdpo", "solution"), ("sdpo", "solution_no_think")
GUIDED, UNGUIDED = ("sft", "guided"), ("sft", "unguided")
METHODS = {
    GRPO: Look("grpo", "GRPO", "#0072b2", "#56b4e9", "s"),
    SDPO: Look("sdpo", "SDPO (c\u00a0=\u00a0s)", "#d55e00", "#ff8c42", "^"),
    NO_THINK: Look("nothink", "SDPO (c\u00a0=\u00a0s\\think)", "#c48a00", "#f0c94d", "v"),
    GUIDED: Look("guided", "SFT guided", "#b8588f", "#e39fc6", "P"),
    UNGUIDED: Look("unguided", "SFT unguided", "#008f68", "#3fc79a", "X"),
}
_SPARE = (("#5b4fc4", "#a59bff", "d"), ("#7a5230", "#c79a6b", "p"), ("#3d7a00", "#9bd35a", "h"))
_LINES = ("-", "--", ":", "-.")
#: Colours that are no method's: text, lines, page.
INK = {"ink": ("#1f2430", "#e6e8ee"), "muted": ("#5c6472", "#a3abba"), "grid": ("#dfe3ea", "#333a47"),
       "page": ("#fdfdfc", "#14171d")}  # fmt: skip

#: Teacher contexts as tables name them, and by their symbols.
CONTEXTS = {
    "none": "none",
    "solution": "s (full solution)",
    "solution_no_think": "s\\think (thinking removed)",
    "regenerated": "ỹ (regenerated under s)",
    "answer": "final answer only",
    "feedback": "feedback",
    "donor": "solution of another problem",
    "concise": "instruction to be concise",
}
CONTEXT_SYMBOLS = {"none": "none", "solution": "s", "solution_no_think": "s\\think", "regenerated": "ỹ"}


def looks(experiments: Iterable[dict[str, Any]]) -> dict[str, Look]:
    """Experiment name -> look, for the experiments of a plan (`experiment`, `method`, `context`, `label`) in its order.

    Experiments of one method share its colour; a second one gets another line. Where two have one label, both get
    their names.
    """
    chosen: dict[str, Look] = {}
    spare = iter(_SPARE * 10)
    methods = dict(METHODS)
    for about in experiments:
        kind = (about["method"], about["context"])
        label = about["label"].replace(" = ", "\u00a0=\u00a0")
        if kind not in methods:
            light, dark, marker = next(spare)
            methods[kind] = Look(f"extra{len(methods)}", label, light, dark, marker)
        if about["experiment"] not in chosen:
            taken = sum(look.key == methods[kind].key for look in chosen.values())
            chosen[about["experiment"]] = replace(methods[kind], label=label, line=_LINES[taken % len(_LINES)])
    labels = [look.label for look in chosen.values()]
    return {
        name: look if labels.count(look.label) == 1 else replace(look, label=f"{look.label}, {name}")
        for name, look in chosen.items()
    }


def kinds(experiments: Iterable[dict[str, Any]]) -> list[Kind]:
    """Every (method, context) of a plan's experiments: those of the paper first, the others in the plan's order."""
    found = dict.fromkeys((about["method"], about["context"]) for about in experiments)
    return [*(kind for kind in METHODS if kind in found), *(kind for kind in found if kind not in METHODS)]


def palette(chosen: Iterable[Look]) -> dict[str, tuple[str, str]]:
    """CSS variable -> (light, dark) of everything that a figure may use."""
    return INK | {look.key: (look.light, look.dark) for look in (BASE_LOOK, PAPER, *chosen)}


#: Metrics in sentences.
NAMES = {SCORE: "accuracy", LENGTH: "length", DENSITY: "density of epistemic words"}


class Scale(NamedTuple):
    """How values are printed beside a dot, and along the axis."""

    value: Callable[[float], str]
    tick: Callable[[float], str]


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def whole_percent(value: float) -> str:
    return f"{100 * value:.0f}\u00a0%"


def number(value: float) -> str:
    """Three significant digits or whole numbers, thousands separated."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def times(value: float) -> str:
    return f"{value:.2g}×"


def change(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _tick(value: float) -> str:
    return f"{round(value, 9):,g}".replace("-", "−")


PERCENT = Scale(whole_percent, whole_percent)
NUMBER = Scale(number, _tick)
TIMES = Scale(times, lambda value: f"{_tick(value)}×")
CHANGE = Scale(change, _tick)


def shown(metric: str, value: float) -> str:
    """A value of a metric with its unit."""
    if metric == SCORE:
        return percent(value)
    unit = {LENGTH: "tokens", DENSITY: "per 1,000 tokens", EPISTEMIC: "per completion"}[metric]
    return f"{number(value)}\u00a0{unit}"


def signed(metric: str, difference: Iterable[float]) -> str:
    """`+24.8 points [20.1, 29.3]`: a difference with its interval."""
    scale, unit = (100.0, " points") if metric == SCORE else (1.0, "")
    value, low, high = (_plain(scale * part) for part in difference)
    sign = "" if value.startswith("−") else "+"
    return f"{sign}{value}{unit} [{low}, {high}]"


def interval(metric: str, estimate: Iterable[float]) -> str:
    """`59.6 % [55.1, 63.9]`."""
    scale = 100.0 if metric == SCORE else 1.0
    value, *ends = estimate
    low, high = (_plain(scale * part) for part in ends)
    return f"{shown(metric, value)} [{low}, {high}]"


def wrapped(label: str, width: int) -> str:
    """A label in lines of at most `width` characters, broken after spaces, `_`, `-` and `/`, else anywhere."""
    pieces = [
        whole[start : start + width]
        for whole in re.findall(r"[^ _/-]*[ _/-]|[^ _/-]+", label)
        for start in range(0, len(whole), width)
    ]
    lines = [""]
    for piece in pieces:
        if len(lines[-1]) + len(piece.rstrip(" ")) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


def _plain(value: float) -> str:
    if value != value:
        return "?"
    text = number(value) if abs(value) < 10 else f"{value:,.1f}"
    return text.replace("-", "−")
