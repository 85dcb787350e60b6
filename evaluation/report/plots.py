"""Plots, histograms and heat maps -> SVG pictures, and the same data as short tables and in words.

One plain matplotlib figure a plot, on white paper whatever the colours of the page around it. Curves differ by dashes,
markers and hatching beside their colours; cells of heat maps say their number.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from evaluation.report.blocks import (
    KINDS,
    Cell,
    Curve,
    Drawing,
    HeatMap,
    Histogram,
    Plot,
    Table,
    Values,
    category,
    numbers,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1b5fa8", "#b3470f", "#2c7a3d", "#8b3fa0", "#806000", "#a8325a")
GREY = "#59616d"
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxx", "----")
HEAT = "PuOr_r"  # purple below the middle, orange above: colour-blind people can distinguish them (ColorBrewer)
FIGURE_INCHES = (5.2, 3.8)
FEW_POINTS = 14  # up to which every point of a curve gets a marker
MAX_LETTERS = 40  # of a name in a legend; the table has it whole
MAX_CATEGORY_LETTERS = 22
MAX_CATEGORIES_NAMED = 16
MAX_TABLE_ROWS = 30  # of the data behind one curve
STYLE = {
    "svg.hashsalt": "report",  # else ids change from run to run
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": "#d6dae1",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.2,
    "hatch.linewidth": 0.7,
}


# ------------------------------------------------------------------------------------------------------------ drawing


def svg_of(plot: Drawing) -> bytes:
    """The plot as an SVG file, the same bytes for the same plot; b"" where there is nothing to draw."""
    is_drawable, draw = DRAWN[type(plot)]
    if not is_drawable(plot):
        return b""
    with _style():
        from matplotlib.figure import Figure

        figure, file = Figure(figsize=FIGURE_INCHES, layout="constrained"), io.BytesIO()
        axes = figure.subplots()
        draw(axes, plot)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside lower left", ncols=min(2, len(labels)))
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return file.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Settings of our own only, whatever matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the words and the table have such names whole
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _draw_plot(axes: Axes, plot: Plot) -> None:
    if plot.is_categorical:
        _name_categories(axes, plot.curves[0].x)
        axes.grid(visible=False, axis="x")
    if plot.x_log:
        axes.set_xscale("log")
    if plot.y_log:
        axes.set_yscale("log")
    for number, curve in enumerate(plot.curves):
        if plot.drawable(curve).any():
            (_draw_bars if plot.kind == "bars" else _draw_curve)(axes, plot, number, curve)
    axes.set_xlabel(_label(plot.x_label))
    axes.set_ylabel(_label(plot.y_label))


def _draw_curve(axes: Axes, plot: Plot, number: int, curve: Curve) -> None:
    shown = plot.drawable(curve)
    x = np.arange(len(shown), dtype=float) if plot.is_categorical else numbers(curve.x, "x")
    x, y = np.where(shown, x, np.nan), np.where(shown, numbers(curve.y, "y"), np.nan)
    colour, step = COLOURS[number % len(COLOURS)], "post" if plot.kind == "steps" else None
    look = {"color": colour, "linestyle": DASHES[number % len(DASHES)], "marker": MARKERS[number % len(MARKERS)],
            "markevery": 1 if shown.sum() <= FEW_POINTS else (number % 3 * 0.05, 0.15)}  # fmt: skip
    if curve.is_reference:
        look = {"color": GREY, "linestyle": ":", "linewidth": 1.2}
    if curve.low is not None:
        low, high = (np.where(shown, numbers(end, "interval"), np.nan) for end in (curve.low, curve.high))
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, step=step)
    drawstyle = "steps-post" if step else "default"
    axes.plot(x, y, label=_shortened(curve.label, MAX_LETTERS), drawstyle=drawstyle, **look)


def _draw_bars(axes: Axes, plot: Plot, number: int, curve: Curve) -> None:
    shown = np.flatnonzero(plot.drawable(curve))
    width = 0.8 / len(plot.curves)
    x = shown + (number - (len(plot.curves) - 1) / 2) * width
    colour = GREY if curve.is_reference else COLOURS[number % len(COLOURS)]
    hatch = HATCHES[number % len(HATCHES)]
    # A hatched bar is an outline: hatching upon its own colour would not be seen.
    axes.bar(x, numbers(curve.y, "y")[shown], 0.92 * width, facecolor="none" if hatch else colour, edgecolor=colour,
             hatch=hatch, label=_shortened(curve.label, MAX_LETTERS))  # fmt: skip
    if curve.low is not None:
        axes.vlines(x, *(numbers(end, "interval")[shown] for end in (curve.low, curve.high)), color="black")


def _draw_histogram(axes: Axes, plot: Histogram) -> None:
    edges, groups = numbers(plot.bin_edges, "edges"), plot.groups
    for (label, counts), colour, dashes in zip(groups.items(), COLOURS, DASHES, strict=False):
        if counts.sum():
            share = 100.0 * counts / counts.sum()
            axes.stairs(share, edges, fill=True, facecolor=colour, alpha=0.28, linewidth=0)
            axes.stairs(share, edges, color=colour, linestyle=dashes, linewidth=1.4, label=label)
    filled = np.flatnonzero(sum(groups.values()))
    axes.set_xlim(edges[max(0, filled[0] - 1)], edges[min(len(edges) - 1, filled[-1] + 2)])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_label(plot.x_label))
    axes.set_ylabel("% of the pairs of a kind")


def _draw_heat_map(axes: Axes, plot: HeatMap) -> None:
    import matplotlib

    cells, names = plot.cells, [_shortened(name, MAX_CATEGORY_LETTERS) for name in plot.names]
    low, high = plot.centre - plot.reach, plot.centre + plot.reach
    colours, middles = matplotlib.colormaps[HEAT], np.arange(len(names)) + 0.5
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(cells), cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=1
    )
    axes.patch.set(facecolor="#eef0f3", edgecolor="#c3c9d2", hatch="////")  # seen where a cell is empty
    for row, column in np.ndindex(cells.shape):
        share = (cells[row, column] - low) / (high - low)
        is_dark = _luminance(colours(share)) < 0.18 if np.isfinite(share) else False
        axes.text(middles[column], middles[row], _label(plot.texts[row][column]), ha="center", va="center",
                  fontsize=8.5, color="white" if is_dark else "black")  # fmt: skip
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.tick_params(length=0, labelsize=8.5)
    axes.grid(visible=False)
    axes.set_xlabel(_label(plot.axis_label))
    axes.set_ylabel(_label(plot.axis_label))
    axes.figure.colorbar(mesh, ax=axes, label=_label(plot.value_label), extend="both")


def _luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of red, green, blue in 0..1 by WCAG 2; black stands out better than white above 0.18."""
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


DRAWN = {  # kind of drawing -> whether there is anything to draw, and what draws it
    Plot: (lambda plot: any(plot.drawable(curve).any() for curve in plot.curves), _draw_plot),
    Histogram: (lambda plot: any(counts.sum() > 0 for counts in plot.groups.values()), _draw_histogram),
    HeatMap: (lambda plot: np.isfinite(plot.cells).any(), _draw_heat_map),
}


def _name_categories(axes: Axes, values: Sequence[Cell]) -> None:
    names = [_shortened(category(value), MAX_CATEGORY_LETTERS) for value in values]
    every = -(-len(names) // MAX_CATEGORIES_NAMED)
    is_tight = sum(map(len, names[::every])) > 44
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if is_tight else {}
    axes.set_xticks(range(0, len(names), every), names[::every], **turned)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _label(text: str) -> str:
    """Plain text for matplotlib, to which $ means mathematics."""
    return plain(text).replace("$", r"\$")


def _shortened(name: str, letters: int) -> str:
    name = plain(name)
    shown = _label(name if len(name) <= letters else name[: letters - 1] + "\u2026")
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves labels that begin with _ out of a legend


# ----------------------------------------------------------------------------------------------------------- in words


def in_words(plot: Drawing) -> str:
    """What a plot shows, for readers who do not see it."""
    if isinstance(plot, HeatMap):
        return f"Heat map: {plain(plot.title)}. Both axes: {plain(plot.axis_label)}. {_extremes(plot)}"
    if isinstance(plot, Histogram):
        groups = (f"{label}: {_peak(plot, counts)}" for label, counts in plot.groups.items())
        return f"Histogram: {plain(plot.title)}. Across: {plain(plot.x_label)}. {'. '.join(groups)}."
    across = f"Across: {plain(plot.x_label)}{', logarithmic' * plot.x_log}."
    upwards = f"Upwards: {plain(plot.y_label)}{', logarithmic' * plot.y_log}."
    return " ".join(
        [f"{KINDS[plot.kind]}: {plain(plot.title)}.", across, upwards, *(_ends(plot, curve) for curve in plot.curves)]
    )


def _ends(plot: Plot, curve: Curve) -> str:
    shown = np.flatnonzero(plot.drawable(curve))
    if not len(shown):
        return f"{plain(curve.label)}: no values."
    y = numbers(curve.y, "y")
    first, last = (f"{y[i]:.4g} at {category(curve.x[i])}" for i in (shown[0], shown[-1]))
    return f"{plain(curve.label)}: {first}." if len(shown) == 1 else f"{plain(curve.label)}: from {first} to {last}."


def _peak(plot: Histogram, counts: np.ndarray) -> str:
    if not counts.sum():
        return "no pairs"
    top, edges = int(np.argmax(counts)), plot.bin_edges
    return f"{counts.sum():,.0f} pairs, most of them between {edges[top]:.3g} and {edges[top + 1]:.3g}"


def _extremes(plot: HeatMap) -> str:
    """The highest and the lowest cell; cells stand in the order of their rows."""
    cells = plot.cells.ravel()
    if not np.isfinite(cells).any():
        return f"{plain(plot.value_label)}: no values."
    extremes = []
    for word, place in (("highest", int(np.nanargmax(cells))), ("lowest", int(np.nanargmin(cells)))):
        row, column = divmod(place, len(plot.names))
        extremes.append(f"{word} {plot.texts[row][column]} for {plot.names[row]} and {plot.names[column]}")
    return plain(f"{plot.value_label}: {', '.join(extremes)}.")


def remarks(plot: Drawing) -> list[str]:
    """Sentences on what a plot does not show."""
    if isinstance(plot, HeatMap):
        num_empty = int(np.count_nonzero(np.isnan(plot.cells)))
        return [f"{num_empty} of {plot.cells.size} cells are hatched: they have no figure."] if num_empty else []
    if isinstance(plot, Histogram):
        return [f"There are no {label} pairs to draw." for label, counts in plot.groups.items() if not counts.sum()]
    if not plot.curves:
        return ["There are no values to draw."]
    sentences = []
    for curve in plot.curves:
        num_points, num_shown = len(curve.x), int(plot.drawable(curve).sum())
        if not num_shown:
            sentences.append(f"{plain(curve.label)} has no values to draw.")
        elif num_shown < num_points:
            sentences.append(f"{plain(curve.label)}: {num_points - num_shown} of {num_points} points are gaps.")
    if sentences:
        log = ", or not above 0, where an axis is logarithmic," if plot.x_log or plot.y_log else ""
        sentences.append(f"Values that are not available or not finite{log} are not drawn.")
    return sentences


# -------------------------------------------------------------------------------------------------------- data tables


def data_tables(plot: Drawing) -> list[Table]:
    """The data behind a plot, at most 30 rows of each curve: one table where the curves share their x."""
    if isinstance(plot, HeatMap):
        rows = [[name, *texts] for name, texts in zip(plot.names, plot.texts, strict=True)]
        return [Table(f"{plot.title}: {plot.value_label}", [plot.axis_label, *plot.names], rows)]
    if isinstance(plot, Histogram):
        return [_histogram_table(plot)]
    if len({_x_key(curve) for curve in plot.curves}) <= 1:
        return [_curve_table(plot, plot.curves, f"{plot.title}: data")] if plot.curves else []
    return [_curve_table(plot, [curve], f"{plot.title}: data of {curve.label}") for curve in plot.curves]


def _x_key(curve: Curve) -> tuple:
    return tuple(curve.x) if curve.is_categorical else tuple(numbers(curve.x, "x").tolist())


def _curve_table(plot: Plot, curves: Sequence[Curve], caption: str) -> Table:
    num_points = len(curves[0].x)
    rows = np.unique(np.linspace(0, num_points - 1, min(num_points, MAX_TABLE_ROWS)).round().astype(int))
    x = [category(value) for value in curves[0].x] if plot.is_categorical else _cells(curves[0].x)
    header, columns = [plot.x_label], [x]
    for curve in curves:
        header.append(curve.label or plot.y_label)
        columns.append(_cells(curve.y))
        if curve.low is not None:
            header += [f"{header[-1]}, from", f"{header[-1]}, to"]
            columns += [_cells(curve.low), _cells(curve.high)]
    note = f"{len(rows)} of {num_points:,} points, evenly chosen." if len(rows) < num_points else ""
    # Cosines and shares of 1 need more decimals than percentages do.
    is_small = all(np.nanmax(np.abs(numbers(curve.y, "y")), initial=0) <= 1 for curve in curves)
    return Table(caption, header, [[column[i] for column in columns] for i in rows], note, 4 if is_small else 2)


def _cells(values: Values) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in numbers(values, "values").tolist()]


def _histogram_table(plot: Histogram) -> Table:
    """Bins are joined, none is left out."""
    edges, groups = plot.bin_edges, plot.groups
    num_bins = len(edges) - 1
    joined = -(-num_bins // MAX_TABLE_ROWS)
    rows = []
    for start in range(0, num_bins, joined):
        counts = (float(counts[start : start + joined].sum()) for counts in groups.values())
        within = f"{edges[start]:.4g} to {edges[min(start + joined, num_bins)]:.4g}"
        rows.append([within, *(int(count) if count.is_integer() else count for count in counts)])
    note = f"Each row joins {joined} bins of the histogram." if joined > 1 else ""
    return Table(f"{plot.title}: numbers of pairs", [plot.x_label, *groups], rows, note)
