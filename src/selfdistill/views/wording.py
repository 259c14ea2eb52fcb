"""Numbers as the report prints them."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.views.figures import Scale
from selfdistill.views.measures import DENSITY, EPISTEMIC, LENGTH, SCORE

NAMES = {
    SCORE: "accuracy",
    LENGTH: "length",
    EPISTEMIC: "uncertainty words",
    DENSITY: "density of uncertainty words",
}


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


def signed(metric: str, difference: Sequence[float]) -> str:
    """`+24.8 points [20.1, 29.3]`: a difference with its interval."""
    scale, unit = (100.0, " points") if metric == SCORE else (1.0, "")
    value, low, high = (_plain(scale * part) for part in difference)
    sign = "" if value.startswith("−") else "+"
    return f"{sign}{value}{unit} [{low}, {high}]"


def interval(metric: str, estimate: Sequence[float]) -> str:
    """`59.6 % [55.1, 63.9]`."""
    scale = 100.0 if metric == SCORE else 1.0
    low, high = (_plain(scale * part) for part in estimate[1:])
    return f"{shown(metric, estimate[0])} [{low}, {high}]"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))


def _plain(value: float) -> str:
    text = number(value) if abs(value) < 10 else f"{value:,.1f}"
    return text.replace("-", "−")
