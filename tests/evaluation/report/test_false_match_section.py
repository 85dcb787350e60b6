"""evaluation/report/section_false_matches.py: heat maps on one scale, tables, and what stands in a cell."""

import pytest
from report_example import HOSTILE, example_report

from evaluation.report.blocks import HeatMap, Plot, Table
from evaluation.report.reading import settings_of
from evaluation.report.section_false_matches import cell_of, false_match_table, false_matches, in_powers, in_times


@pytest.fixture(scope="module")
def tested():
    return {one.name: one for one in settings_of(example_report())}


def of_kind(blocks, kind):
    return [block for block in blocks if isinstance(block, kind)]


def test_models_stand_side_by_side_on_one_scale(tested):
    blocks = false_matches(tested["UTK"])
    maps = of_kind(blocks, HeatMap)
    assert [drawn.title for drawn in maps] == [
        f"UTK: {model}, false matches by age at FMR 1e-3" for model in ("A", HOSTILE)
    ]
    assert maps[0].centre == maps[1].centre == -3 and maps[0].reach == maps[1].reach >= 1
    for drawn, (_, result) in zip(maps, tested["UTK"].of_models, strict=True):
        part = result["analysis"]["false_matches_by_age"]["concatenate"]
        row = part["at_fmr"]["1e-3"]
        assert drawn.texts[0][0].strip("()") == f"{row['log10_fmr_by_groups'][0][0]:.1f}"
        assert drawn.texts[7][7] == "" and drawn.values[7][7] is None  # 6 pairs
        assert [line[0] for line in drawn.texts] == drawn.texts[0]
    (gaps,) = of_kind(blocks, Plot)
    assert gaps.y_log and [curve.label for curve in gaps.curves] == ["A", HOSTILE, "all pairs"]


def test_the_table_has_every_model_and_grey_pixels_and_what_is_missing_is_said(tested):
    blocks = false_matches(tested["UTK"])
    (table,) = of_kind(blocks, Table)
    assert [row[:2] for row in table.rows] == [["FMR 1e-3", name] for name in ("A", HOSTILE, "grey pixels")]
    assert "TAR %" not in table.header and table.header[3] == "0-5 / 18+" and "drawing pictures" in table.note
    row = tested["UTK"].of_models[0][1]["analysis"]["false_matches_by_age"]["concatenate"]["at_fmr"]["1e-3"]
    assert table.rows[0][2] == f"{row['threshold']:.3f}"
    assert table.rows[0][5].startswith(f"{in_powers(row['bands']['0-5']['fmr'])} (")
    assert blocks[0].startswith(
        "180 pictures; left out: 0 exact duplicates, 0 without an age. Who the people are is unknown"
    )
    assert blocks[-1].startswith("Missing: ") and "FMR 1e-4 needs 100,000 impostor pairs or more" in blocks[-1]


def test_a_set_without_figures_says_why(tested):
    assert false_matches(tested["lfw.bin"]) == ["No false matches by age in these results."]
    (reason,) = false_matches(tested["fgnet"])
    assert reason.startswith("Missing: FMR 1e-3 needs 10,000 impostor pairs or more, there are")
    (reason,) = false_matches(tested["morph2_10000"])
    assert reason.startswith("Missing: FMR 1e-3 needs 10,000")


def test_the_terminal_gets_a_row_a_model_and_why_a_set_of_unnamed_people_has_none():
    report = example_report()
    (text,) = false_match_table(report)
    lines = text.splitlines()
    assert lines[0] == "False match rates by age, at one threshold with FMR 1e-3 over all ages:"
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["UTK"] * 3
    for model in report["models"]:
        for part in model["results"]["UTK"]["analysis"]["false_matches_by_age"].values():
            part["at_fmr"]["1e-3"] = {"threshold": None, "reason": "too few"}
    assert false_match_table(report)[0] == "left out: UTK, false matches by age, A: too few"
    assert false_match_table({}) == []


@pytest.mark.parametrize(
    ("counts", "cell"),
    [
        ((5000, 400, -1.097), (-1.097, "-1.1")),
        ((5000, 9, -2.745), (-2.745, "(-2.7)")),  # fewer than ten pass
        ((15_000, 0, None), (-4.1, "<-4.1")),  # none of 15,000: below one in 15,000, rounded upwards
        ((150, 0, None), (-3.0, "<-2.1")),  # that says nothing of being above the rate of all: its colour
        ((99, 0, None), (None, "")),
        ((99, 5, None), (None, "")),
        ((None, None, None), (None, "")),
    ],
)
def test_what_stands_in_a_cell(counts, cell):
    assert cell_of(*counts, -3.0) == cell


def test_rates_and_ratios_are_short():
    assert [in_powers(rate) for rate in (0.09, 1.3e-4, 1.0, 0.0, 9.96e-3)] == [
        "9.0e-2",
        "1.3e-4",
        "1.0e0",
        "0",
        "1.0e-2",
    ]
    assert [in_times(ratio) for ratio in (0.0, 1.84, 99.6, 1234.5)] == ["0", "1.8", "100", "1,234"]
