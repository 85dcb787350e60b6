"""Curves of a benchmark at one validation, the earlier ones faded behind them, as a figure for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (4.6, 3.4)
DOTS_PER_INCH = 110
NUM_EARLIER = 4  # shown behind the newest
NOW, EARLIER, TEXT, RULE = "#1f5fa8", "#8a8f98", "#333333", "#dddddd"


@dataclass(frozen=True, eq=False)
class Panel:
    """One curve: `x` (P,) numbers, `y` (P,) percent, NaN where there is no figure."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    ticks: Sequence[str] = ()  # names of the x, where these are 0, 1, 2, ...
    x_log: bool = False


@dataclass(frozen=True, eq=False)
class Curves:
    """The panels of one benchmark at one step."""

    step: int
    panels: Sequence[Panel] = field(default=())


def draw_curves(title: str, now: Curves, earlier: Sequence[Curves] = ()) -> Figure:
    """A panel a curve, side by side; the last few of `earlier`, which has the same panels, stand behind in grey."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = [*earlier[-NUM_EARLIER:], now]
    width, height = PANEL_INCHES
    with rc_context({"font.size": 9.5, "text.parse_math": False}):
        figure = Figure((width * len(now.panels), height), dpi=DOTS_PER_INCH, layout="constrained")
        figure.suptitle(f"{title}, step {now.step:,}", fontsize=11, color=TEXT)
        for place, axes in enumerate(figure.subplots(1, len(now.panels), squeeze=False)[0]):
            _draw(axes, [(of.step, of.panels[place]) for of in shown])
        if len(shown) > 1:
            figure.axes[0].legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.85, edgecolor=RULE)
    return figure


def _draw(axes: Axes, panels: list[tuple[int, Panel]]) -> None:
    """Draws one panel; the last of `panels` is the newest."""
    newest = panels[-1][1]
    for number, (step, panel) in enumerate(panels, 1 - len(panels)):
        look = {"color": NOW, "linewidth": 2.0, "zorder": 3} if number == 0 else \
               {"color": EARLIER, "linewidth": 1.2, "alpha": 1 / (1.4 - 0.6 * number), "zorder": 2}  # fmt: skip
        axes.plot(*_points(panel), marker="" if panel.x_log else "o", markersize=4, label=f"step {step:,}", **look)
    axes.set_title(newest.title, fontsize=9.5, color=TEXT)
    axes.set_xlabel(newest.x_label)
    axes.set_ylabel(newest.y_label)
    axes.set_ylim(_lowest([_points(panel)[1] for _, panel in panels]), 102)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    if newest.x_log:
        axes.set_xscale("log")
        axes.set_xlim(right=100)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xticks(newest.x, newest.ticks or [f"{x:g}" for x in newest.x], fontsize=8 if newest.ticks else None)
        axes.set_xlim(min(newest.x) - 0.5, max(newest.x) + 0.5)
        _annotate_ends(axes, newest)


def _points(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """What can be drawn: a logarithmic axis has no place for 0."""
    x, y = np.asarray(panel.x, float), np.asarray(panel.y, float)
    drawable = x > 0 if panel.x_log else np.full(len(x), True)
    return x[drawable], y[drawable]


def _annotate_ends(axes: Axes, panel: Panel) -> None:
    """Writes the first and the last figure beside their points."""
    known = [place for place, y in enumerate(panel.y) if math.isfinite(y)]
    for place in sorted({known[0], known[-1]}) if known else ():
        axes.annotate(f"{panel.y[place]:.1f}", (panel.x[place], panel.y[place]), xytext=(0, 6), color=NOW,
                      textcoords="offset points", ha="center", fontsize=8.5)  # fmt: skip


def _lowest(curves: Sequence[Sequence[float]]) -> float:
    """The ten below the lowest figure, so that curves near 100 can be distinguished."""
    known = [y for curve in curves for y in curve if math.isfinite(y)]
    return max(0.0, 10.0 * math.floor((min(known) - 1) / 10)) if known else 0.0
