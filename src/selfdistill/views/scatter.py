"""Two measures of every method against each other, as small as the other figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfdistill.seeds import Uncertain
from selfdistill.views.figures import WIDE, Plot
from selfdistill.views.style import INK, Look, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """Two values of one method, each with its interval."""

    look: Look
    label: str
    x: Uncertain
    y: Uncertain
    is_hollow: bool = False


def scatter(points: Sequence[Point], x_scale: Scale, y_scale: Scale, x_label: str) -> Plot:
    """Points with intervals in both directions; their labels stand to the right, each with a line to its point."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for point in points:
            _draw_point(axes, point)
        axes.set_xlabel(x_label)
        axes.tick_params(axis="y", length=0)
        for axis, scale in ((axes.xaxis, x_scale), (axes.yaxis, y_scale)):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(lambda value, _, scale=scale: scale.tick(value))
        axes.grid(linewidth=0.6)
        low, high = axes.get_ylim()
        # Labels in the order of the points, evenly spaced: they cannot overlap.
        ordered = sorted(points, key=lambda point: (point.y.value, point.x.value))
        for place, point in enumerate(ordered):
            height = low + (high - low) * (place + 0.5) / len(ordered)
            axes.annotate(point.label, (point.x.value, point.y.value), (1.03, height),
                          textcoords=axes.get_yaxis_transform(), va="center", fontsize="small",
                          arrowprops={"arrowstyle": "-", "color": INK["grid"][0], "linewidth": 0.8})  # fmt: skip

    return Plot(draw, 2 * WIDE, max(260, 19 * len(points) + 40))


def _draw_point(axes: Axes, point: Point) -> None:
    color, x, y = point.look.light, point.x, point.y
    axes.plot([x.low, x.high], [y.value] * 2, color=color, linewidth=1.0, alpha=0.6, zorder=2)
    axes.plot([x.value] * 2, [y.low, y.high], color=color, linewidth=1.0, alpha=0.6, zorder=2)
    axes.plot([x.value], [y.value], point.look.marker, color=color, markeredgewidth=1.4, zorder=4,
              markerfacecolor=INK["page"][0] if point.is_hollow else color)  # fmt: skip
