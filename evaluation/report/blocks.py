"""What a section of the report is made of: sentences, headings, terms, tables, drawings, pairs of pictures.

Nothing here draws or knows HTML; what does not fit together is a UserError that names the table or curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from meta import UserError
from utils.cli import printable

Cell: TypeAlias = str | float | None  # None where a figure is not available
Values: TypeAlias = Sequence[float | None] | np.ndarray
KINDS = {"line": "Line plot", "steps": "Step plot", "bars": "Bar chart"}
LARGEST = 1e100  # matplotlib fails near the largest floats


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Terms:
    """Words and what they mean."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Pair:
    """Two pictures by name, the ages on them, and their cosine."""

    names: tuple[str, str]
    ages: tuple[Cell, Cell]
    cosine: float | None


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures of a setting under one caption."""

    caption: str
    setting: str  # its name in results.json, by which pictures are found
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows. Numbers are right-aligned, None is shown as not available."""

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
        """Raises: UserError for lengths that differ, values that are not numbers, one end of the intervals alone."""
        if (self.low is None) != (self.high is None):
            raise UserError(f"Curve {self.label!r} has one end of its intervals only: give low and high, or neither.")
        lengths = {name: len(getattr(self, name)) for name in ("x", "y", "low", "high") if self._has(name)}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{length} values of {name}" for name, length in lengths.items())
            raise UserError(f"Curve {self.label!r} has {counts}: give each point one value of each.")
        for name in lengths:
            if name != "x" or not self.is_categorical:
                numbers(getattr(self, name), f"{name} of curve {self.label!r}")

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None

    @property
    def is_categorical(self) -> bool:
        return any(isinstance(value, str) for value in self.x)


@dataclass(frozen=True, eq=False)
class Plot:
    """Curves on common axes. Categories, if x holds names, are the same in all curves; bars always have categories."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    kind: str = "line"  # or "steps", each level from its point to the next, or "bars"
    x_log: bool = False
    y_log: bool = False

    def __post_init__(self) -> None:
        """Raises: UserError for an unknown kind, and for categories that differ or stand on a logarithmic axis."""
        if self.kind not in KINDS:
            raise UserError(f"Plot {self.title!r} is of kind {self.kind!r}: take one of {', '.join(KINDS)}.")
        if not self.is_categorical:
            return
        if self.x_log:
            raise UserError(f"Plot {self.title!r} has categories on a logarithmic axis: leave x_log out.")
        if len({tuple(category(value) for value in curve.x) for curve in self.curves}) > 1:
            raise UserError(f"The curves of plot {self.title!r} have different categories: give all of them the same.")

    @property
    def is_categorical(self) -> bool:
        return self.kind == "bars" or any(curve.is_categorical for curve in self.curves)

    def drawable(self, curve: Curve) -> np.ndarray:
        """Which points of a curve can be drawn: (P,) bool."""
        y = numbers(curve.y, "y")
        shown = np.isfinite(y) & ((y > 0) | (not self.y_log))
        if not self.is_categorical:
            x = numbers(curve.x, "x")
            shown &= np.isfinite(x) & ((x > 0) | (not self.x_log))
        return shown


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

    def __post_init__(self) -> None:
        """Raises: UserError for edges that do not rise, other numbers of counts than bins, counts below 0."""
        edges = numbers(self.bin_edges, f"edges of histogram {self.title!r}")
        if len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise UserError(f"The edges of histogram {self.title!r} do not rise: give one more edge than bins, rising.")
        for label, counts in self.groups.items():
            if len(counts) != len(edges) - 1 or not (np.isfinite(counts) & (counts >= 0)).all():
                raise UserError(
                    f"The counts of {label!r} in histogram {self.title!r} are not {len(edges) - 1} numbers of 0 or "
                    "more: give one for each bin."
                )

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """The counts (B,) of genuine and impostor pairs."""
        what = f"counts of histogram {self.title!r}"
        return {"genuine": numbers(self.genuine, what), "impostor": numbers(self.impostor, what)}


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Numbers of every two of the same categories as coloured cells that say what they hold.

    `values` (C,C) colour the cells, None those that stay empty; `texts` (C,C) stand in them. Colours run from
    `centre` - `reach` to `centre` + `reach`, so that heat maps with the same two can be compared.
    """

    title: str
    axis_label: str  # of both axes
    names: Sequence[str]  # (C,)
    values: Sequence[Values]
    texts: Sequence[Sequence[str]]
    value_label: str
    centre: float
    reach: float

    def __post_init__(self) -> None:
        """Raises: UserError for other numbers of rows or columns than names, and for a scale without length."""
        num = len(self.names)
        for rows in (self.values, self.texts):
            if num == 0 or len(rows) != num or any(len(row) != num for row in rows):
                raise UserError(f"Heat map {self.title!r} has not {num} rows of {num} cells: give each two categories "
                                "one.")  # fmt: skip
        if not (math.isfinite(self.centre) and 0 < self.reach < LARGEST):
            raise UserError(f"The colours of heat map {self.title!r} reach from {self.centre} by {self.reach}: give "
                            "finite numbers, and a reach above 0.")  # fmt: skip

    @property
    def cells(self) -> np.ndarray:
        """The values as (C,C) float64, NaN where there is none."""
        return np.stack([numbers(row, f"cells of heat map {self.title!r}") for row in self.values])


Drawing: TypeAlias = Plot | Histogram | HeatMap
Block: TypeAlias = str | Heading | Table | Drawing | Terms | Pairs


def numbers(values: Values, what: str) -> np.ndarray:
    """As float64 (P,), None and what is too large to draw as NaN; raises UserError."""
    try:
        found = np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"The {what} cannot be drawn, they are not all numbers: give numbers or None.") from error
    return np.where(np.abs(found) < LARGEST, found, np.nan)


def category(value: Cell) -> str:
    """The name of a place on an axis of categories."""
    return plain(value) if isinstance(value, str) else "?" if value is None else f"{float(value):g}"


def plain(text: str) -> str:
    """The text in one line, control characters, changes of direction and lone surrogates escaped."""
    return printable(" ".join(text.split()))
