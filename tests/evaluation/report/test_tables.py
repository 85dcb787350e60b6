"""evaluation/report/tables.py: a table that lines up and is Markdown."""

import re

import pytest

from evaluation.report.tables import Row, rows_of, table

ROWS = [
    Row("FG-NET", "leave-one-out rank-1 %", 94.2, 94.25, 12.346, 1.0),
    Row("MORPH2 10,000", "rank-1 %", 100.0, 0.0, None, 0.01),
    Row("CALFW", "a measure with a very long name, longer than others", -3.14159, 12345.678),
    Row("FG-NET", "age error, in age groups", 1.005e-3, None),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line[1:-1].split("|")]


def test_numbers_have_two_decimals_and_none_is_an_empty_cell():
    header, ruler, *lines = table(ROWS).splitlines()
    assert cells(header) == ["benchmark", "measure", "concatenate", "add", "grey pixels", "chance"]
    assert [cell[-1] for cell in cells(ruler)] == ["-", "-", ":", ":", ":", ":"]  # Markdown: numbers stand right
    assert [cells(line) for line in lines] == [
        ["FG-NET", "leave-one-out rank-1 %", "94.20", "94.25", "12.35", "1.00"],
        ["MORPH2 10,000", "rank-1 %", "100.00", "0.00", "", "0.01"],
        ["CALFW", "a measure with a very long name, longer than others", "-3.14", "12345.68", "", ""],
        ["FG-NET", "age error, in age groups", "0.00", "", "", ""],
    ]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []], ids=["four", "one", "none"])
def test_all_lines_are_of_one_length_with_the_bars_below_each_other(rows):
    lines = table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({tuple(bar.start() for bar in re.finditer(r"\|", line)) for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


RESULT = {
    "chance": {"rank1_percent": 5.0},
    "add": {"rank1_percent": 2.0, "rank10_percent": 20.0, "unasked": 99.0},
    "concatenate": {"rank1_percent": 1.0, "rank10_percent": 10.0},
    "another column": {"rank1_percent": 98.0},
    "grey_pixels": {"rank1_percent": 3.0, "rank10_percent": 30.0},
}


def test_rows_take_each_figure_from_its_column_in_the_order_of_the_labels():
    labels = {"rank10_percent": "rank 10 %", "rank1_percent": "rank 1 %"}
    assert rows_of("FG-NET", labels, RESULT) == [
        Row("FG-NET", "rank 10 %", concatenate=10.0, add=20.0, grey_pixels=30.0, chance=None),
        Row("FG-NET", "rank 1 %", concatenate=1.0, add=2.0, grey_pixels=3.0, chance=5.0),
    ]
