"""Curves and histograms -> inline SVG that takes its colours from the page, with the same data as tables and in words.

Plots are drawn by matplotlib with colours that stand for CSS variables, which are put in their place afterwards: one
drawing serves the light page, the dark one and the printed one. Curves also differ by dashes, markers and hatching.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from meta import UserError
from utils.cli import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Cell: TypeAlias = str | float | None  # None where a figure is not available
Values: TypeAlias = Sequence[float | None] | np.ndarray
KINDS = {"line": "Line plot", "steps": "Step plot", "bars": "Bar chart"}
MAX_TABLE_ROWS = 30  # of the data behind one curve
LARGEST = 1e100  # matplotlib loses its way near the largest floats

# Colours that stand for those of the page; nothing else in a drawing has them.
INK, RULE, MUTED = "#fe0101", "#fe0102", "#fe0103"
NUM_COLOURS = 6  # --c0 ... --c5 of the page
COLOURS = tuple(f"#fe02{number:02x}" for number in range(NUM_COLOURS))
PAGE_COLOURS = {INK: "currentColor", RULE: "var(--rule)", MUTED: "var(--muted)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)
}
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxx", "----")
REFERENCE_DASHES = (0, (2, 2))
MARKERS_ON_A_CURVE = 7

FIGURE_INCHES = (5.2, 3.3)
SWATCH_INCHES = (0.42, 0.17)
MAX_CATEGORY_LETTERS = 22  # on an axis; the table has them whole
MAX_CATEGORIES_NAMED = 16
STYLE = {
    "svg.fonttype": "none",  # letters stay letters, in the font of the page
    "svg.hashsalt": "report",  # else ids change from run to run
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.7,
    "font.size": 10.5,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.2,
    "axes.formatter.useoffset": False,
}


# ------------------------------------------------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows. Numbers stand right, None is shown as not available."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""  # a sentence below it
    decimals: int = 2  # of numbers that are not whole

    def __post_init__(self) -> None:
        """Raises: UserError for rows of another length than the header."""
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.header):
                raise UserError(
                    f"Row {number} of table {self.caption!r} has {len(row)} cells, its header has {len(self.header)}: "
                    "give each column one cell, None where there is no figure."
                )


# eq=False: comparing arrays has no single answer.
@dataclass(frozen=True, eq=False)
class Curve:
    """One curve of a plot: `x` (P,) numbers or names of categories, `y` (P,); None, NaN and infinity are gaps.

    `low` and `high` (P,) are the ends of intervals around `y`. A reference, such as chance, is drawn in grey.
    """

    label: str
    x: Sequence[str] | Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    is_reference: bool = False

    def __post_init__(self) -> None:
        """Raises: UserError for lengths that differ, values that are no numbers, one end of the intervals alone."""
        if (self.low is None) != (self.high is None):
            raise UserError(f"Curve {self.label!r} has one end of its intervals only: give low and high, or neither.")
        lengths = {name: len(getattr(self, name)) for name in ("x", "y", "low", "high") if self._has(name)}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{length} values of {name}" for name, length in lengths.items())
            raise UserError(f"Curve {self.label!r} has {told}: give each point one value of each.")
        for name in lengths:
            if name != "x" or not self.is_categorical:
                _numbers(getattr(self, name), f"{name} of curve {self.label!r}")

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None

    @property
    def is_categorical(self) -> bool:
        return any(isinstance(value, str) for value in self.x)


@dataclass(frozen=True, eq=False)
class Plot:
    """Curves with common axes. `table` takes the place of the table that is made of the curves otherwise.

    Categories, if x holds names, are the same in all curves. Bars always stand for categories.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    kind: str = "line"  # or "steps", each level from its point to the next, or "bars"
    x_log: bool = False
    y_log: bool = False
    table: Table | None = None

    def __post_init__(self) -> None:
        """Raises: UserError for an unknown kind, and for categories that differ or stand on a logarithmic axis."""
        if self.kind not in KINDS:
            raise UserError(f"Plot {self.title!r} is of kind {self.kind!r}: take one of {', '.join(KINDS)}.")
        if not self.is_categorical:
            return
        if self.x_log:
            raise UserError(f"Plot {self.title!r} has categories on a logarithmic axis: leave x_log out.")
        if len({tuple(_category(value) for value in curve.x) for curve in self.curves}) > 1:
            raise UserError(f"The curves of plot {self.title!r} have different categories: give all of them the same.")

    @property
    def is_categorical(self) -> bool:
        return self.kind == "bars" or any(curve.is_categorical for curve in self.curves)


@dataclass(frozen=True, eq=False)
class Histogram:
    """How the scores of genuine and impostor pairs are spread, each group as the percentage of its pairs in a bin.

    `bin_edges` (B + 1,) rising, `genuine` and `impostor` (B,) counts; bin k reaches from edge k to edge k + 1.
    """

    title: str
    x_label: str
    bin_edges: Values
    genuine: Values
    impostor: Values
    labels: tuple[str, str] = ("genuine", "impostor")

    def __post_init__(self) -> None:
        """Raises: UserError for edges that do not rise, other numbers of counts than bins, counts below 0."""
        edges = _numbers(self.bin_edges, f"edges of histogram {self.title!r}")
        if len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise UserError(f"The edges of histogram {self.title!r} do not rise: give one more edge than bins, rising.")
        for counts, label in zip((self.genuine, self.impostor), self.labels, strict=True):
            counts = _numbers(counts, f"counts of histogram {self.title!r}")
            if len(counts) != len(edges) - 1 or not (np.isfinite(counts) & (counts >= 0)).all():
                raise UserError(
                    f"The counts of {label!r} in histogram {self.title!r} are not {len(edges) - 1} numbers of 0 or "
                    "more: give one for each bin."
                )


def _numbers(values: Values, what: str) -> np.ndarray:
    """As float64 (P,), None as NaN."""
    try:
        numbers = np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"The {what} cannot be drawn, they are not all numbers: give numbers or None.") from error
    return np.where(np.abs(numbers) < LARGEST, numbers, np.nan)


def _category(value: Cell) -> str:
    return plain(value) if isinstance(value, str) else "?" if value is None else f"{float(value):g}"


def plain(text: str) -> str:
    """The text in one line without anything that steers: control characters, changes of direction, half characters."""
    return printable(" ".join(text.split()))


# ---------------------------------------------------------------------------------------------------------- for a page


def drawing(plot: Plot | Histogram, prefix: str) -> str:
    """Inline SVG with its description as label, ids beginning with `prefix`; "" where there is nothing to draw."""
    if isinstance(plot, Histogram):
        is_drawable, draw = any(sum(group) > 0 for group in (plot.genuine, plot.impostor)), _draw_histogram
    else:
        is_drawable, draw = any(_drawable(plot, curve).any() for curve in plot.curves), _draw_plot
    if not is_drawable:
        return ""
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=FIGURE_INCHES, layout="constrained")
        draw(figure.subplots(), plot)
        return inline_svg(_saved(figure), prefix, {"role": "img", "class": "plot", "aria-label": in_words(plot)})


def legend(plot: Plot | Histogram, prefix: str) -> list[tuple[str, str]]:
    """Inline SVG of a piece of each curve or group, and its name."""
    if isinstance(plot, Histogram):
        named = [(label, _box_swatch(*look)) for label, look in zip(plot.labels, _GROUP_LOOKS, strict=True)]
    else:
        named = [(curve.label, _swatch(plot, number)) for number, curve in enumerate(plot.curves) if curve.label]
    with _style():
        return [(_swatch_svg(draw, f"{prefix}-{number}"), plain(label)) for number, (label, draw) in enumerate(named)]


def in_words(plot: Plot | Histogram) -> str:
    """What a plot shows, for who does not see it."""
    if isinstance(plot, Histogram):
        groups = (
            f"{plain(label)}: {_peak(plot, counts)}"
            for label, counts in zip(plot.labels, (plot.genuine, plot.impostor), strict=True)
        )
        return f"Histogram: {plain(plot.title)}. Across: {plain(plot.x_label)}. {'. '.join(groups)}."
    across = f"Across: {plain(plot.x_label)}{', logarithmic' * plot.x_log}."
    upwards = f"Upwards: {plain(plot.y_label)}{', logarithmic' * plot.y_log}."
    return " ".join(
        [f"{KINDS[plot.kind]}: {plain(plot.title)}.", across, upwards, *(_ends(plot, curve) for curve in plot.curves)]
    )


def _ends(plot: Plot, curve: Curve) -> str:
    shown = np.flatnonzero(_drawable(plot, curve))
    if not len(shown):
        return f"{plain(curve.label)}: no values."
    y = _numbers(curve.y, "y")
    first, last = (f"{y[i]:.4g} at {_category(curve.x[i])}" for i in (shown[0], shown[-1]))
    return f"{plain(curve.label)}: {first}." if len(shown) == 1 else f"{plain(curve.label)}: from {first} to {last}."


def _peak(plot: Histogram, counts: Values) -> str:
    if not sum(counts):
        return "no pairs"
    top = int(np.argmax(counts))
    edges = plot.bin_edges
    return f"{sum(counts):,} pairs, most of them between {edges[top]:.3g} and {edges[top + 1]:.3g}"


def remarks(plot: Plot | Histogram) -> list[str]:
    """Sentences on what a plot does not show."""
    if isinstance(plot, Histogram):
        empty = [
            label for label, group in zip(plot.labels, (plot.genuine, plot.impostor), strict=True) if not sum(group)
        ]
        return [f"There are no {plain(label)} pairs to draw." for label in empty]
    if not plot.curves:
        return ["There are no values to draw."]
    sentences = []
    for curve in plot.curves:
        num_points, num_shown = len(curve.x), int(_drawable(plot, curve).sum())
        if not num_shown:
            sentences.append(f"{plain(curve.label)} has no values to draw.")
        elif num_shown < num_points:
            sentences.append(f"{plain(curve.label)}: {num_points - num_shown} of {num_points} points are gaps.")
    if sentences:
        log = ", or not above 0, where an axis is logarithmic," if plot.x_log or plot.y_log else ""
        sentences.append(f"Values that are not available or not finite{log} are not drawn.")
    return sentences


# -------------------------------------------------------------------------------------------------------- data tables


def data_tables(plot: Plot | Histogram) -> list[Table]:
    """The data behind a plot, at most 30 rows of each curve: one table where the curves share their x."""
    if isinstance(plot, Histogram):
        return [_histogram_table(plot)]
    if plot.table is not None:
        return [plot.table]
    if len({_x_key(curve) for curve in plot.curves}) <= 1:
        return [_curve_table(plot, plot.curves, f"{plot.title}: data")] if plot.curves else []
    return [_curve_table(plot, [curve], f"{plot.title}: data of {curve.label}") for curve in plot.curves]


def _x_key(curve: Curve) -> tuple:
    return tuple(curve.x) if curve.is_categorical else tuple(_numbers(curve.x, "x").tolist())


def _curve_table(plot: Plot, curves: Sequence[Curve], caption: str) -> Table:
    num_points = len(curves[0].x)
    rows = np.unique(np.linspace(0, num_points - 1, min(num_points, MAX_TABLE_ROWS)).round().astype(int))
    header, columns = [plot.x_label], [_x_column(plot, curves[0])]
    for curve in curves:
        header.append(curve.label or plot.y_label)
        columns.append(_cells(curve.y))
        if curve.low is not None:
            header += [f"{header[-1]}, from", f"{header[-1]}, to"]
            columns += [_cells(curve.low), _cells(curve.high)]
    note = f"{len(rows)} of {num_points:,} points, evenly chosen." if len(rows) < num_points else ""
    shown = [[column[i] for column in columns] for i in rows]
    return Table(caption, header, shown, note, decimals=_decimals(curves))


def _decimals(curves: Sequence[Curve]) -> int:
    """Cosines and shares of 1 need more of them than percentages do."""
    return 4 if all(np.nanmax(np.abs(_numbers(curve.y, "y")), initial=0) <= 1 for curve in curves) else 2


def _x_column(plot: Plot, curve: Curve) -> list[Cell]:
    return [_category(value) for value in curve.x] if plot.is_categorical else _cells(curve.x)


def _cells(values: Values) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in _numbers(values, "values").tolist()]


def _histogram_table(plot: Histogram) -> Table:
    """Bins are joined, none is left out."""
    num_bins = len(plot.genuine)
    joined = -(-num_bins // MAX_TABLE_ROWS)
    starts = range(0, num_bins, joined)
    rows = [
        [
            f"{plot.bin_edges[start]:.4g} to {plot.bin_edges[min(start + joined, num_bins)]:.4g}",
            *(_count(sum(group[start : start + joined])) for group in (plot.genuine, plot.impostor)),
        ]
        for start in starts
    ]
    note = f"Each row joins {joined} bins of the histogram." if joined > 1 else ""
    return Table(f"{plot.title}: numbers of pairs", [plot.x_label, *plot.labels], rows, note)


def _count(value: float) -> float:
    return int(value) if float(value).is_integer() else float(value)


# ------------------------------------------------------------------------------------------------------------ drawing


@contextmanager
def _style():
    """Settings of our own only, whatever matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser's fonts have it; here it is only measured
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _drawable(plot: Plot, curve: Curve) -> np.ndarray:
    """Which points can be drawn: (P,) bool."""
    y = _numbers(curve.y, "y")
    shown = np.isfinite(y) & ((y > 0) | (not plot.y_log))
    if not plot.is_categorical:
        x = _numbers(curve.x, "x")
        shown &= np.isfinite(x) & ((x > 0) | (not plot.x_log))
    return shown


def _draw_plot(axes: Axes, plot: Plot) -> None:
    if plot.is_categorical:
        _name_categories(axes, next(curve.x for curve in plot.curves))
    for is_log, set_scale, axis in (
        (plot.x_log, axes.set_xscale, axes.xaxis),
        (plot.y_log, axes.set_yscale, axes.yaxis),
    ):
        if is_log:
            set_scale("log")
            axis.set_major_formatter(lambda value, _: _power(value))
            axis.set_minor_formatter(lambda value, _: "")
    for number, curve in enumerate(plot.curves):
        if _drawable(plot, curve).any():
            (_draw_bars if plot.kind == "bars" else _draw_curve)(axes, plot, number, curve)
    _tick_within_a_decade(axes, plot)
    if plot.is_categorical:
        axes.grid(visible=False, axis="x")
    axes.set_xlabel(plain(plot.x_label))
    axes.set_ylabel(plain(plot.y_label))


def _draw_curve(axes: Axes, plot: Plot, number: int, curve: Curve) -> None:
    shown = _drawable(plot, curve)
    x = np.arange(len(shown), dtype=float) if plot.is_categorical else _numbers(curve.x, "x")
    x, y = np.where(shown, x, np.nan), np.where(shown, _numbers(curve.y, "y"), np.nan)
    look = _line_look(number, curve)
    steps = {"drawstyle": "steps-post"} if plot.kind == "steps" else {}
    if curve.low is not None:
        low, high = (np.where(shown, _numbers(end, "interval"), np.nan) for end in (curve.low, curve.high))
        how = {"step": "post"} if steps else {}
        axes.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0, **how)
    axes.plot(x, y, markevery=_marked(shown, number), clip_on=True, **look, **steps)


def _line_look(number: int, curve: Curve) -> dict:
    if curve.is_reference:
        return {"color": MUTED, "linestyle": REFERENCE_DASHES, "linewidth": 1.2, "marker": "", "zorder": 1.5}
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def _marked(shown: np.ndarray, number: int) -> list[int]:
    """Positions of markers: some along the curve, not at the same places as its neighbour's, and lone points."""
    points = np.flatnonzero(shown)
    gap_before, gap_after = np.insert(~shown[:-1], 0, True), np.append(~shown[1:], True)
    lone = np.flatnonzero(shown & gap_before & gap_after)
    if len(points) <= 2 * MARKERS_ON_A_CURVE:
        return points.tolist()
    shift = number % 3 / 3
    spaced = (np.arange(MARKERS_ON_A_CURVE) + shift) / (MARKERS_ON_A_CURVE - 1 + shift) * (len(points) - 1)
    return sorted({*points[spaced.round().astype(int)].tolist(), *lone.tolist()})


def _draw_bars(axes: Axes, plot: Plot, number: int, curve: Curve) -> None:
    shown = np.flatnonzero(_drawable(plot, curve))
    width = 0.8 / len(plot.curves)
    x = shown + (number - (len(plot.curves) - 1) / 2) * width
    y = _numbers(curve.y, "y")[shown]
    axes.bar(x, y, 0.92 * width, **_bar_look(number, curve))
    if curve.low is not None:
        ends = [_numbers(end, "interval")[shown] for end in (curve.low, curve.high)]
        axes.vlines(x, *ends, color=INK, linewidth=1.0)


def _bar_look(number: int, curve: Curve) -> dict:
    colour = MUTED if curve.is_reference else COLOURS[number % len(COLOURS)]
    hatch = HATCHES[number % len(HATCHES)]
    # A hatched bar is an outline: hatching upon its own colour would not be seen.
    return {"facecolor": "none" if hatch else colour, "edgecolor": colour, "hatch": hatch, "linewidth": 1.0}


_GROUP_LOOKS = ((COLOURS[0], "-"), (COLOURS[1], (0, (3, 1.5))))


def _draw_histogram(axes: Axes, plot: Histogram) -> None:
    edges = _numbers(plot.bin_edges, "edges")
    counts = [_numbers(group, "counts") for group in (plot.genuine, plot.impostor)]
    for group, (colour, dashes) in zip(counts, _GROUP_LOOKS, strict=True):
        if group.sum():
            share = 100.0 * group / group.sum()
            axes.stairs(share, edges, fill=True, facecolor=colour, alpha=0.28, linewidth=0)
            axes.stairs(share, edges, color=colour, linestyle=dashes, linewidth=1.4)
    filled = np.flatnonzero(counts[0] + counts[1])
    axes.set_xlim(edges[max(0, filled[0] - 1)], edges[min(len(edges) - 1, filled[-1] + 2)])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(plain(plot.x_label))
    axes.set_ylabel("% of the pairs of a kind")


def _name_categories(axes: Axes, values: Sequence[Cell]) -> None:
    names = [_shortened(_category(value)) for value in values]
    every = -(-len(names) // MAX_CATEGORIES_NAMED)
    is_tight = sum(map(len, names[::every])) > 44
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if is_tight else {}
    axes.set_xticks(range(0, len(names), every), names[::every], **turned)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_CATEGORY_LETTERS else name[: MAX_CATEGORY_LETTERS - 1] + "\u2026"


def _power(value: float) -> str:
    """0.01, 1, 100, and 10 with a raised exponent beyond."""
    if value * 1.001 > 1e-4 and value < 1e5:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**exponent:.3g}"
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"


def _tick_within_a_decade(axes: Axes, plot: Plot) -> None:
    """A logarithmic axis of less than two decades is numbered at 1, 2, 5 too: it might have no number otherwise."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    for is_log, axis, (low, high) in (
        (plot.x_log, axes.xaxis, axes.get_xlim()),
        (plot.y_log, axes.yaxis, axes.get_ylim()),
    ):
        if is_log and high / low < 3:
            axis.set_major_locator(MaxNLocator(5))
        elif is_log:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,), numticks=8))


# ------------------------------------------------------------------------------------------------------------ legends


def _swatch(plot: Plot, number: int) -> Callable[[Figure], None]:
    """Draws a piece of the curve of this number, or a box like its bars."""
    curve = plot.curves[number]
    if plot.kind == "bars":
        look = _bar_look(number, curve)
        return _rectangles([look])

    def line(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        figure.add_artist(Line2D([0.03, 0.5, 0.97], [0.5] * 3, markevery=[1], **_line_look(number, curve)))

    return line


def _box_swatch(colour: str, dashes: str | tuple) -> Callable[[Figure], None]:
    outline = {"facecolor": "none", "edgecolor": colour, "linestyle": dashes, "linewidth": 1.4}
    return _rectangles([{"facecolor": colour, "alpha": 0.28, "linewidth": 0}, outline])


def _rectangles(looks: Sequence[dict]) -> Callable[[Figure], None]:
    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        for look in looks:
            figure.add_artist(Rectangle((0.08, 0.1), 0.84, 0.8, **look))

    return draw


def _swatch_svg(draw: Callable[[Figure], None], prefix: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SWATCH_INCHES)
    draw(figure)
    return inline_svg(_saved(figure), prefix, {"class": "swatch", "aria-hidden": "true"})


# ---------------------------------------------------------------------------------------------------------------- SVG


def _saved(figure: Figure) -> str:
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    return file.getvalue()


def inline_svg(svg: str, prefix: str, attributes: dict[str, str]) -> str:
    """matplotlib's SVG file as an element of a page: no prolog, namespaces, style sheet or fixed size.

    Ids that nothing refers to go, the others begin with `prefix`. Coordinates are rounded to 1/100 point.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        element.text, element.tail = (part and part.strip() or None for part in (element.text, element.tail))
        values = {name.split("}")[-1]: value for name, value in element.attrib.items()}
        element.attrib = {name: _rounded(value) for name, value in values.items() if name not in ("style", "id")}
        _set_style(element, values.get("style", ""))
        if "id" in values:
            element.set("id", values["id"])
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("style", "metadata")]:
            parent.remove(child)
    _prefix_ids(root, prefix)
    root.attrib = attributes | {"viewBox": root.get("viewBox")}
    return ElementTree.tostring(root, encoding="unicode")


def _set_style(element: ElementTree.Element, style: str) -> None:
    """Colours and fonts of the page in the place of matplotlib's."""
    parts = [part.strip() for part in style.split(";") if part.strip() and not part.strip().startswith("font-family")]
    # var() belongs into a style, not into an attribute.
    parts += [f"{name}: {element.attrib.pop(name)}" for name in ("fill", "stroke") if name in element.attrib]
    if element.tag == "text" and not any(part.startswith("fill:") for part in parts):
        parts.append("fill: currentColor")
    text = "; ".join(parts)
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    if text:
        element.set("style", text)


def _rounded(value: str) -> str:
    return re.sub(r"\d+\.\d{3,}(?!\d*e)", lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))


def _prefix_ids(root: ElementTree.Element, prefix: str) -> None:
    reference = re.compile(r"url\(#([^)]+)\)")
    used = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            used |= {value[1:]} if name == "href" else set(reference.findall(value))
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}-{name}")
        for name, value in element.attrib.items():
            if name == "href":
                element.set(name, f"#{prefix}-{value[1:]}")
            else:
                element.set(name, reference.sub(rf"url(#{prefix}-\1)", value))
