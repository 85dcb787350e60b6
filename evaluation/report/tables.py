"""Results -> a table people read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate


@dataclass(frozen=True)
class Row:
    """One measured figure with both joins, and the floors that it should stand above; None where there is none."""

    benchmark: str
    measure: str
    concatenate: float | None
    add: float | None
    grey_pixels: float | None = None
    chance: float | None = None


DIFFERENCES = {  # key of a comparison -> what it is called
    "rank1": "rank-1 %",
    "pooled_auc": "AUC %, all pairs",
    "pooled_eer": "EER %, all pairs",
    "tar_at_far_1e-2": "TAR % at FAR 1e-2",
    "tar_at_far_1e-3": "TAR % at FAR 1e-3",
}
HEADER = ("benchmark", "measure", "concatenate", "add", "grey pixels", "chance")
NUM_TEXT_COLUMNS = 2


def rows_of(title: str, labels: Mapping[str, str], result: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The rows of one protocol: `labels` maps keys of the results to words, `result` holds one dict a column.

    What was not measured has no row: chance alone is no result.
    """
    columns = HEADER[NUM_TEXT_COLUMNS:]
    rows = [
        Row(title, words, *(result.get(column.replace(" ", "_"), {}).get(key) for column in columns))
        for key, words in labels.items()
    ]
    return [row for row in rows if (row.concatenate, row.add, row.grey_pixels) != (None, None, None)]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table whose columns also line up on a terminal."""
    cells = [(row.benchmark, row.measure, *map(_number, list(vars(row).values())[2:])) for row in rows]
    return aligned(HEADER, cells, NUM_TEXT_COLUMNS)


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


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
