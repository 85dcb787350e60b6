"""evaluation/report/plots.py: inline SVG, words and tables of curves and histograms."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from evaluation.report.plots import (
    Curve,
    Histogram,
    Plot,
    Table,
    data_tables,
    drawing,
    in_words,
    legend,
    plain,
    remarks,
)
from meta import UserError

HISTOGRAM = Histogram("H", "cosine", [-1, 0, 1], [1, 3], [4, 0])


def plot_of(*curves, **options) -> Plot:
    return Plot("T <&>", "across", "up", curves, **options)


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    """One drawing of each kind; they take their time."""
    line = Curve("a", [1e-3, 0.1, 1, 10], [1, None, 3, math.nan], low=[0, 0, 2, 0], high=[2, 0, 4, 0])
    chance = Curve("chance", [1e-3, 10], [1, 1], is_reference=True)
    bars = Curve("a $x$ <b>", ["one", "two"], [1, 2])
    return {
        "log": drawing(plot_of(line, chance, x_log=True, y_log=True), "p1"),
        "steps": drawing(plot_of(line, kind="steps"), "p2"),
        "bars": drawing(plot_of(bars, Curve("b", ["one", "two"], [2, None]), kind="bars"), "p3"),
        "histogram": drawing(HISTOGRAM, "p4"),
    }


def test_drawings_are_xml_with_a_label_and_ids_of_their_own(drawn):
    ids = []
    for number, svg in enumerate(drawn.values(), 1):
        root = ElementTree.fromstring(svg)
        assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label")
        assert "width" not in root.attrib and root.get("viewBox")
        own = [element.get("id") for element in root.iter() if element.get("id")]
        assert all(name.startswith(f"p{number}-") for name in own)
        ids += own
    assert ids and len(ids) == len(set(ids))


def test_drawings_take_the_colours_and_the_font_of_the_page(drawn):
    for svg in drawn.values():
        assert "#fe0" not in svg and "font-family" not in svg and "http" not in svg and "<style" not in svg
        assert "var(--c0)" in svg and "currentColor" in svg
    assert "var(--muted)" in drawn["log"]


def test_the_same_plot_gives_the_same_drawing(drawn):
    assert drawing(HISTOGRAM, "p4") == drawn["histogram"]


def test_a_logarithmic_axis_is_numbered_in_powers(drawn):
    texts = [element.text for element in ElementTree.fromstring(drawn["log"]).iter("text")]
    assert {"0.001", "0.1", "10"} <= set(texts)


@pytest.mark.parametrize("curve", [Curve("a", [], []), Curve("a", [1, 2], [None, math.inf])])
def test_what_has_no_values_is_not_drawn_but_told(curve):
    plot = plot_of(curve)
    assert drawing(plot, "p") == ""
    assert "a has no values to draw." in remarks(plot)
    assert "a: no values." in in_words(plot)
    assert drawing(Histogram("H", "x", [0, 1], [0], [0]), "p") == ""


def test_gaps_are_counted():
    plot = plot_of(Curve("a", [0, 1, 2], [1, 2, None]), x_log=True)
    assert remarks(plot) == [
        "a: 2 of 3 points are gaps.",
        "Values that are not available or not finite, or not above 0, where an axis is logarithmic, are not drawn.",
    ]
    assert remarks(plot_of(Curve("a", [1], [1]))) == []
    assert remarks(plot_of()) == ["There are no values to draw."]


def test_in_words_tells_axes_and_ends():
    told = in_words(plot_of(Curve("a", [1, 2], [3, 4.5]), x_log=True))
    assert told == "Line plot: T <&>. Across: across, logarithmic. Upwards: up. a: from 3 at 1 to 4.5 at 2."
    assert "genuine: 4 pairs, most of them between 0 and 1" in in_words(HISTOGRAM)


def test_the_legend_names_curves_in_plain_letters():
    swatches = legend(plot_of(Curve("a\u202e\n b", [1], [1]), Curve("", [1], [1])), "p")
    assert [name for _, name in swatches] == ["a\\u202e b"]
    assert ElementTree.fromstring(swatches[0][0]).get("aria-hidden") == "true"
    assert len(legend(HISTOGRAM, "p")) == 2


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
    own = Table("mine", ["x"], [["1"]])
    assert data_tables(plot_of(a, table=own)) == [own]


def test_small_values_keep_their_decimals():
    assert data_tables(plot_of(Curve("a", [1], [0.1234])))[0].decimals == 4
    assert data_tables(plot_of(Curve("a", [1, 2], [12.34, None])))[0].decimals == 2
    assert data_tables(plot_of(Curve("a", [1], [None])))[0].rows == [[1, None]]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Table("t", ["a", "b"], [[1]]), "has 1 cells"),
        (lambda: Curve("c", [1], [1], low=[0]), "one end of its intervals"),
        (lambda: Curve("c", [1, 2], [1]), "2 values of x"),
        (lambda: Curve("c", [1], ["many"]), "not all numbers"),
        (lambda: plot_of(kind="pie"), "is of kind 'pie'"),
        (lambda: plot_of(Curve("c", ["a"], [1]), x_log=True), "logarithmic"),
        (lambda: plot_of(Curve("c", ["a"], [1]), Curve("d", ["b"], [1])), "different categories"),
        (lambda: Histogram("h", "x", [1, 0], [1], [1]), "do not rise"),
        (lambda: Histogram("h", "x", [0, 1], [-1], [1]), "not 1 numbers"),
    ],
)
def test_what_cannot_be_drawn_is_a_user_error(make, what):
    with pytest.raises(UserError, match=what):
        make()


def test_plain_text_steers_nothing():
    assert plain("a\tb\n\x1b[1m\u202e\ud800") == "a b \\x1b[1m\\u202e\\ud800"
