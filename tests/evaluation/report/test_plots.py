"""evaluation/report/plots.py and blocks.py: pictures, words and tables of curves and histograms."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from refusals import refused

from evaluation.report.blocks import Curve, HeatMap, Histogram, Plot, Table, plain
from evaluation.report.plots import HEAT, _luminance, data_tables, in_words, remarks, svg_of

HISTOGRAM = Histogram("H", "cosine", [-1, 0, 1], [1, 3], [4, 0])
HEAT_MAP = HeatMap("M", "age", ["0-12", "13+"], [[-1.0, None], [-3.5, -5.0]], [["-1.0", ""], ["(-3.5)", "<-5.0"]],
                   "log10 of the rate", centre=-3.0, reach=2.0)  # fmt: skip


def plot_of(*curves, **options) -> Plot:
    return Plot("T <&>", "across", "up", curves, **options)


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """One drawing of each kind; they take their time."""
    line = Curve("a", [1e-3, 0.1, 1, 10], [1, None, 3, math.nan], low=[0, 0, 2, 0], high=[2, 0, 4, 0])
    chance = Curve("chance", [1e-3, 10], [1, 1], is_reference=True)
    bars = Curve("a $x$ <b>", ["one", "two"], [1, 2])
    return {
        "log": svg_of(plot_of(line, chance, x_log=True, y_log=True)),
        "steps": svg_of(plot_of(line, kind="steps")),
        "bars": svg_of(plot_of(bars, Curve("b", ["one", "two"], [2, None]), kind="bars")),
        "histogram": svg_of(HISTOGRAM),
        "heat map": svg_of(HEAT_MAP),
    }


def texts(svg: bytes) -> set[str]:
    """What is written in a drawing: matplotlib keeps each text as a comment beside its letters' outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return {node.text.strip() for node in ElementTree.fromstring(svg, parser).iter(ElementTree.Comment)}


def test_drawings_are_svg_files_with_axes_and_a_legend(drawn):
    assert all(ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg" for svg in drawn.values())
    assert {"across", "up", "a", "chance"} <= texts(drawn["log"])
    assert {"one", "two", "b"} <= texts(drawn["bars"]) and {"genuine", "impostor"} <= texts(drawn["histogram"])
    assert {"-1.0", "(-3.5)", "&lt;-5.0", "0-12", "age", "log10 of the rate"} <= texts(drawn["heat map"])
    assert any("$x" in text for text in texts(drawn["bars"]))  # a dollar in a name is no mathematics
    assert svg_of(HISTOGRAM) == drawn["histogram"]


def test_a_heat_map_names_its_ends_its_cells_and_its_gaps():
    assert in_words(HEAT_MAP) == ("Heat map: M. Both axes: age. log10 of the rate: highest -1.0 for 0-12 and 0-12, "
                                  "lowest <-5.0 for 13+ and 13+.")  # fmt: skip
    assert remarks(HEAT_MAP) == ["1 of 4 cells are hatched: they have no figure."]
    (table,) = data_tables(HEAT_MAP)
    assert table.header == ["age", "0-12", "13+"] and table.rows == [["0-12", "-1.0", ""], ["13+", "(-3.5)", "<-5.0"]]
    empty = HeatMap("E", "age", ["0"], [[None]], [[""]], "rate", 0, 1)
    assert svg_of(empty) == b"" and "rate: no values." in in_words(empty)


def test_the_text_of_every_cell_stands_out_from_its_colour():
    """WCAG AA: 4.5 between text, black or white, and every colour of the scale."""
    import matplotlib

    for share in np.linspace(0, 1, 101):
        luminance = _luminance(matplotlib.colormaps[HEAT](share))
        text = 1.0 if luminance < 0.18 else 0.0
        assert (max(luminance, text) + 0.05) / (min(luminance, text) + 0.05) >= 4.5


@pytest.mark.parametrize("curve", [Curve("a", [], []), Curve("a", [1, 2], [None, math.inf])])
def test_what_has_no_values_is_not_drawn_but_told(curve):
    plot = plot_of(curve)
    assert svg_of(plot) == b""
    assert "a has no values to draw." in remarks(plot)
    assert "a: no values." in in_words(plot)
    assert svg_of(Histogram("H", "x", [0, 1], [0], [0])) == b""


def test_gaps_are_counted():
    plot = plot_of(Curve("a", [0, 1, 2], [1, 2, None]), x_log=True)
    assert remarks(plot) == [
        "a: 2 of 3 points are gaps.",
        "Values that are not available or not finite, or not above 0, where an axis is logarithmic, are not drawn.",
    ]
    assert remarks(plot_of(Curve("a", [1], [1]))) == []
    assert remarks(plot_of()) == ["There are no values to draw."]


def test_in_words_names_axes_and_ends():
    reply = in_words(plot_of(Curve("a", [1, 2], [3, 4.5]), x_log=True))
    assert reply == "Line plot: T <&>. Across: across, logarithmic. Upwards: up. a: from 3 at 1 to 4.5 at 2."
    assert "genuine: 4 pairs, most of them between 0 and 1" in in_words(HISTOGRAM)


def test_data_tables_are_short_and_say_so():
    (table,) = data_tables(plot_of(Curve("a", np.arange(1000), np.arange(1000))))
    assert len(table.rows) == 30 and table.rows[0] == [0, 0] and table.rows[-1] == [999, 999]
    assert table.note == "30 of 1,000 points, evenly chosen."
    (table,) = data_tables(Histogram("H", "x", np.arange(101), np.ones(100), np.ones(100)))
    assert len(table.rows) <= 30 and sum(row[1] for row in table.rows) == 100


def test_curves_share_a_table_where_they_share_their_x():
    a, b = Curve("a", [1, 2], [3, None], low=[2, None], high=[4, None]), Curve("b", [1, 2], [5, 6])
    (table,) = data_tables(plot_of(a, b))
    assert list(table.header) == ["across", "a", "a, from", "a, to", "b"]
    assert table.rows == [[1, 3, 2, 4, 5], [2, None, None, None, 6]]
    assert len(data_tables(plot_of(a, Curve("b", [1], [5])))) == 2


def test_small_values_keep_their_decimals():
    assert data_tables(plot_of(Curve("a", [1], [0.1234])))[0].decimals == 4
    assert data_tables(plot_of(Curve("a", [1, 2], [12.34, None])))[0].decimals == 2
    assert data_tables(plot_of(Curve("a", [1], [None])))[0].rows == [[1, None]]


@pytest.mark.parametrize(("make", "what"), [
    (lambda: Table("t", ["a", "b"], [[1]]), "has 1 cells"),
    (lambda: Curve("c", [1], [1], low=[0]), "one end of its intervals"),
    (lambda: Curve("c", [1, 2], [1]), "2 values of x"), (lambda: Curve("c", [1], ["many"]), "not all numbers"),
    (lambda: plot_of(kind="pie"), "is of kind 'pie'"),
    (lambda: plot_of(Curve("c", ["a"], [1]), x_log=True), "logarithmic"),
    (lambda: plot_of(Curve("c", ["a"], [1]), Curve("d", ["b"], [1])), "different categories"),
    (lambda: Histogram("h", "x", [1, 0], [1], [1]), "do not rise"),
    (lambda: Histogram("h", "x", [0, 1], [-1], [1]), "not 1 numbers"),
    (lambda: HeatMap("h", "x", ["a"], [[1], [2]], [[""]], "y", 0, 1), "has not 1 rows of 1 cells"),
    (lambda: HeatMap("h", "x", ["a"], [[1]], [["", ""]], "y", 0, 1), "has not 1 rows of 1 cells"),
    (lambda: HeatMap("h", "x", ["a"], [[1]], [[""]], "y", 0, 0), "a reach above 0"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_a_user_error(make, what):
    refused(make, match=what)


def test_plain_text_steers_nothing():
    assert plain("a\tb\n\x1b[1m\u202e\ud800") == "a b \\x1b[1m\\u202e\\ud800"
