"""Results -> a table people read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measured figure with both joins, and the floors that it should stand above; None where there is none."""

    benchmark: str
    measure: str
    concatenate: float | None
    add: float | None
    grey_pixels: float | None = None
    chance: float | None = None


HEADER = ("benchmark", "measure", "concatenate", "add", "grey pixels", "chance")
NUM_TEXT_COLUMNS = 2


def rows_of(title: str, labels: Mapping[str, str], result: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The rows of one protocol: `labels` maps keys of the results to words, `result` holds one dict a column."""
    columns = HEADER[NUM_TEXT_COLUMNS:]
    return [
        Row(title, words, *(result.get(column.replace(" ", "_"), {}).get(key) for column in columns))
        for key, words in labels.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table whose columns also line up on a terminal."""
    cells = [HEADER] + [(row.benchmark, row.measure, *map(_number, list(vars(row).values())[2:])) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    ruler = [
        "-" * width if column < NUM_TEXT_COLUMNS else "-" * (width - 1) + ":" for column, width in enumerate(widths)
    ]
    return "\n".join(_line(line, widths) for line in [cells[0], ruler, *cells[1:]])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _line(line: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        text.ljust(width) if column < NUM_TEXT_COLUMNS else text.rjust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    )
    return "| " + " | ".join(padded) + " |"
