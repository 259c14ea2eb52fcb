"""Figures: on the page as SVG text whose colours come from its CSS, one SVG per panel so that panels wrap on a narrow
screen; in files as SVG or PDF of a paper's width. Equal input gives equal bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from html import escape
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING, Any

from selfdistill.seeds import Uncertain
from selfdistill.views.style import INK, Look, Scale, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "selfdistill",
    "font.family": "sans-serif",
    "font.size": 11,
    "lines.markersize": 6.0,
    "lines.linewidth": 2.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": INK["grid"][0],
    "axes.labelcolor": INK["muted"][0],
    "xtick.color": INK["muted"][0],
    "ytick.color": INK["muted"][0],
    "xtick.labelcolor": INK["muted"][0],
    "ytick.labelcolor": INK["ink"][0],
    "text.color": INK["ink"][0],
    "grid.color": INK["grid"][0],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
#: Smaller by the ratio of a paper's text width to the page's.
_IN_A_FILE = {"font.size": 7, "axes.titlesize": 7.5, "lines.markersize": 3.5, "lines.linewidth": 1.2}
_INCHES = 1 / 72
#: Width of a panel in a row of three, in the page's pixels; text keeps its size in narrower ones.
WIDE = 330
#: Width of a figure in a file, in inches: the text width of common conference styles.
TEXT_WIDTH = 5.5


@dataclass(frozen=True)
class Dot:
    """A value with its interval; `points` are the training seeds beside it."""

    look: Look
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    points: Sequence[float] = ()
    is_hollow: bool = False


@dataclass(frozen=True)
class Line:
    """A curve; `low` and `high` are interval ends at each x, `faint` the single seeds behind the mean."""

    look: Look
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    faint: Sequence[tuple[Sequence[float], Sequence[float]]] = field(default=())
    has_markers: bool = False

    @classmethod
    def of(cls, look: Look, x: Sequence[float], estimates: Sequence[Uncertain]) -> Line:
        """A curve through values with their intervals."""
        values, low, high = zip(*estimates, strict=True)
        return cls(look, x, values, low, high, has_markers=True)


@dataclass(frozen=True)
class Plot:
    """What is drawn into axes; `width` and `height` on the page, in its pixels."""

    draw: Callable[[Axes], None]
    width: int
    height: int

    @property
    def svg(self) -> str:
        """The plot alone."""
        with _style():
            figure = _figure(self.width * _INCHES, self.height * _INCHES)
            self.draw(figure.add_subplot())
            return _svg(figure)


def dots(
    rows: Sequence[Sequence[Dot]],
    scale: Scale,
    reference: float | None = None,
    width: int = WIDE,
    limits: tuple[float, float] | None = None,
    bounds: Sequence[float] = (),
) -> Plot:
    """Dot plot: a row per entry (several dots in one row are set one below the other); values are printed if alone.

    `reference` is dashed; `bounds`, such as chance and the ceiling of an accuracy, are dotted.
    """

    labels = [wrapped(row[0].label, 24 if width >= WIDE else 14) for row in rows]
    tallest = max((label.count("\n") + 1 for label in labels), default=1)

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            for index, dot in enumerate(row):
                offset = (index - (len(row) - 1) / 2) * min(0.8 / max(len(row), 1), 0.3)
                _draw_dot(axes, dot, place + offset, scale if len(row) == 1 else None)
        if reference is not None:
            axes.axvline(reference, color=INK["muted"][0], linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
        for bound in bounds:
            axes.axvline(bound, color=INK["muted"][0], linewidth=1.0, linestyle=(0, (1, 2)), zorder=0)
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.12)
        axes.set_xlim(limits or _limits(rows, [*bounds, *([] if reference is None else [reference])]))
        _format(axes.xaxis, scale, 5 if width >= WIDE else 3)
        axes.grid(axis="x", linewidth=0.6)

    return Plot(draw, width, 34 + max(30, 14 * tallest + 6) * len(rows))


def lines(
    series: Sequence[Line],
    scale: Scale,
    x_label: str,
    ticks: Sequence[str] = (),
    width: int = WIDE,
    bounds: Sequence[float] = (),
) -> Plot:
    """Curves over steps, or over named places when `ticks` are given (x = 0, 1, ...); `bounds` are dotted."""

    def draw(axes: Axes) -> None:
        for line in series:
            _draw_line(axes, line)
        for bound in bounds:
            axes.axhline(bound, color=INK["muted"][0], linewidth=1.0, linestyle=(0, (1, 2)), zorder=0)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.3, len(ticks) - 0.7)
        axes.set_xlabel(x_label)
        axes.tick_params(axis="y", length=0)
        _format(axes.yaxis, scale, 5)
        axes.grid(axis="y", linewidth=0.6)

    return Plot(draw, width, 215)


def legend_mark(look: Look) -> Plot:
    """A method's line and marker, as figures draw them."""

    def draw(axes: Axes) -> None:
        _draw_line(axes, Line(look, (0, 1, 2), (0, 0, 0)), markevery=[1])
        axes.set_axis_off()

    return Plot(draw, 34, 14)


def figure_file(panels: Sequence[tuple[str, Plot]], legend: Sequence[Look], columns: int, kind: str) -> bytes:
    """Panels (title, plot) and a legend of their marks in one file of a paper's text width; `kind` is svg or pdf."""
    with _style(), _rc(_IN_A_FILE):
        columns = min(columns, len(panels))
        rows = -(-len(panels) // columns)
        heights = [max(plot.height for _, plot in panels[row * columns : (row + 1) * columns]) for row in range(rows)]
        scale = TEXT_WIDTH / (columns * WIDE)
        figure = _figure(TEXT_WIDTH, sum(heights) * scale + 0.3 * rows + (0.3 if legend else 0.0))
        grid = figure.add_gridspec(rows, columns, height_ratios=heights)
        for place, (title, plot) in enumerate(panels):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            axes.set_title(textwrap.fill(title, 72 // columns), loc="left", fontweight="bold")
            plot.draw(axes)
        if legend:
            _draw_legend(figure, legend)
        buffer = io.BytesIO()
        stamp = {"Date": None} if kind == "svg" else {"CreationDate": None}
        figure.savefig(buffer, format=kind, metadata=stamp)
        return buffer.getvalue()


def _draw_legend(figure: Figure, legend: Sequence[Look]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=k.light, marker=k.marker, linestyle=k.line, label=k.label) for k in legend]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(legend), 4), frameon=False)


def _limits(rows: Sequence[Sequence[Dot]], others: Sequence[float]) -> tuple[float, float]:
    found = [dot for row in rows for dot in row]
    intervals = [(dot.low, dot.high) for dot in found if dot.low is not None and dot.high is not None]
    return spread([*others, *(value for dot in found for value in (dot.value, *dot.points))], intervals)


def spread(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Limits that hold all values and usual intervals with a margin.

    An interval far longer than the others is cut at the edge: two seeds that differ much would squeeze all values into
    one place. It reaches as far as the values span, or three times the median length of an interval.
    """
    intervals = [interval for interval in intervals if isfinite(interval[0]) and isfinite(interval[1])]
    low, high = min(values), max(values)
    reach = max(high - low, 3 * median([b - a for a, b in intervals] or [0.0]))
    low = min([low, *(max(a, low - reach) for a, _ in intervals)])
    high = max([high, *(min(b, high + reach) for _, b in intervals)])
    margin = 0.14 * (high - low) or 1.0
    return low - margin, high + margin


def _style() -> AbstractContextManager[None]:
    # Imported where a figure is drawn: tables, whose modules hold figures too, start in half the time.
    return _rc(_RC)


def _rc(settings: dict[str, Any]) -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(settings)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _format(axis: Axis, scale: Scale, most: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: scale.tick(value))


def _draw_dot(axes: Axes, dot: Dot, place: float, scale: Scale | None) -> None:
    import matplotlib

    color, size, width = dot.look.light, *map(matplotlib.rcParams.get, ("lines.markersize", "lines.linewidth"))
    if dot.low is not None and dot.high is not None:
        axes.plot([dot.low, dot.high], [place, place], color=color, linewidth=1.1 * width, solid_capstyle="round",
                  zorder=2)  # fmt: skip
    if len(dot.points) > 1:
        axes.plot(dot.points, [place] * len(dot.points), "|", color=color, markersize=1.8 * size,
                  markeredgewidth=0.6 * width, zorder=3)  # fmt: skip
    face = "none" if dot.is_hollow else color
    axes.plot([dot.value], [place], dot.look.marker, color=color, markerfacecolor=face, markersize=1.25 * size,
              markeredgewidth=0.7 * width, zorder=4)  # fmt: skip
    if scale is not None:
        axes.annotate(scale.value(dot.value), (dot.value, place), (0, size), textcoords="offset points", ha="center",
                      va="bottom", fontsize="small")  # fmt: skip


def _draw_line(axes: Axes, line: Line, markevery: list[int] | None = None) -> None:
    """Markers at every value, or some along a curve, so that methods differ without colours as well."""
    color = line.look.light
    for x, y in line.faint:
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.35)
    apart = None if line.has_markers else max(len(line.x) // 5, 1)
    axes.plot(line.x, line.y, line.look.line, color=color, marker=line.look.marker,
              markevery=markevery or apart)  # fmt: skip
    if line.low is not None and line.high is not None:
        axes.vlines(line.x, line.low, line.high, color=color, linewidth=1.6, alpha=0.8)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def for_page(svg: str, palette: dict[str, tuple[str, str]], number: int, title: str) -> str:
    """Fit an SVG into a page as its `number`-th: identifiers made unique, colours turned into variables."""
    text = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="f{number}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>f{number}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for name, (light, _) in palette.items():
        text = text.replace(light, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
