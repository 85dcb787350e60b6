"""Results -> a table people read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate


@dataclass(frozen=True)
class Row:
    """One measured figure with both joins, and the floors that it should stand above; None where there is none.

    `sum` is InsightFace's way for pairs: views are added before they are normalised.
    """

    benchmark: str
    measure: str
    concatenate: float | None
    add: float | None
    grey_pixels: float | None = None
    chance: float | None = None
    sum: float | None = None
    sum_deviation: float | None = None  # over ten folds


DIFFERENCES = {  # key of a comparison -> what it is called
    "rank1": "rank-1 %",
    "pooled_auc": "AUC %, all pairs",
    "pooled_eer": "EER %, all pairs",
    "tar_at_far_1e-2": "TAR % at FAR 1e-2",
    "tar_at_far_1e-3": "TAR % at FAR 1e-3",
}
COLUMNS = ("concatenate", "add", "sum", "grey_pixels", "chance")  # fields of Row, and keys of results
NUM_TEXT_COLUMNS = 2


def rows_of(title: str, labels: Mapping[str, str], result: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The rows of one protocol: `labels` maps keys of the results to words, `result` holds one dict a column.

    What was not measured has no row: chance alone is no result.
    """
    rows = [
        Row(title, words, **{column: result.get(column, {}).get(key) for column in COLUMNS},
            sum_deviation=result.get("sum", {}).get(key.replace("_percent", "_std_percent")))
        for key, words in labels.items()
    ]  # fmt: skip
    return [row for row in rows if any(getattr(row, column) is not None for column in COLUMNS if column != "chance")]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table whose columns also line up on a terminal; sums have one where there are any."""
    columns = [column for column in COLUMNS if column != "sum" or any(row.sum is not None for row in rows)]
    cells = [(row.benchmark, row.measure, *(_cell(row, column) for column in columns)) for row in rows]
    header = ("benchmark", "measure", *(column.replace("_", " ") for column in columns))
    return aligned(header, cells, NUM_TEXT_COLUMNS)


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Differences of models on the same pictures, in percentage points, with their 95 % intervals, as such a table."""
    cells = []
    for entry in comparisons:
        for name, words in DIFFERENCES.items():
            key = f"{name}_difference_percentage_points"
            if entry.get(key) is None:
                continue
            low, high = entry[f"{key}_low"], entry[f"{key}_high"]
            interval = "" if low is None else f"{low:+.2f} to {high:+.2f}"
            cells.append((entry["title"], words, f"{entry['a']} less {entry['b']}", f"{entry[key]:+.2f}", interval))
    return aligned(("benchmark", "measure", "models", "difference", "95 % interval"), cells, 3)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int) -> str:
    """A Markdown table; words stand left, numbers right."""
    sides = ["left" if column < num_text_columns else "right" for column in range(len(header))]
    return tabulate(rows, header, tablefmt="pipe", colalign=sides if rows else None, disable_numparse=True)


def with_deviation(value: float, deviation: float | None) -> str:
    """Such as "86.08 +- 2.74"."""
    return f"{value:.2f}" if deviation is None else f"{value:.2f} +- {deviation:.2f}"


def _cell(row: Row, column: str) -> str:
    value = getattr(row, column)
    return "" if value is None else with_deviation(value, row.sum_deviation if column == "sum" else None)
