"""data/ages/histogram.py: shares of the age groups, and a picture with what was counted in it."""

import io
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from data.ages import histogram as age_histogram
from data.ages.histogram import BAR_COLOUR, draw_age_histograms, group_shares
from meta import AGE_GROUP_NAMES, age_group

YOUNG = np.array([0, 5, 12, 13, 18, 18, 25, 66, 120, -1], np.int16)


def test_shares_are_counted_group_by_group():
    draw = random.Random(3)
    ages = [draw.randrange(-1, 121) for _ in range(500)]
    known = [age for age in ages if age >= 0]
    facts = group_shares(np.array(ages, np.int16))
    assert (facts["num_ages"], facts["num_unknown"]) == (len(known), ages.count(-1))
    assert facts["median_years"] == sorted(known)[len(known) // 2] or len(known) % 2 == 0
    assert list(facts["group_shares_percent"]) == list(AGE_GROUP_NAMES)
    for group, share in enumerate(facts["group_shares_percent"].values()):
        assert share == pytest.approx(100 * sum(age_group(age) == group for age in known) / len(known))
    assert sum(facts["group_shares_percent"].values()) == pytest.approx(100)


def test_without_known_ages_there_are_no_shares():
    facts = group_shares(np.array([-1, -1], np.int16))
    assert facts == {"num_ages": 0, "num_unknown": 2, "median_years": None,
                     "group_shares_percent": dict.fromkeys(AGE_GROUP_NAMES, 0.0)}  # fmt: skip


def blue(picture: Image.Image) -> np.ndarray:
    """Where a bar is drawn, (H, W) bool."""
    colour = [int(BAR_COLOUR[k : k + 2], 16) for k in (1, 3, 5)]
    return (np.abs(np.asarray(picture.convert("RGB"), int) - colour).max(axis=2) < 8).copy()


def picture_in(path: Path) -> Image.Image:
    """The picture with its file closed: one left open is a warning in whatever test runs when it is found."""
    with Image.open(path) as picture:
        return picture.copy()


def test_the_picture_has_one_panel_a_data_set_on_the_same_axis(tmp_path):
    only_20, only_80 = np.full(7, 20), np.full(9, 80)
    draw_age_histograms({"one": only_20}, tmp_path / "one.png")
    draw_age_histograms({"one": only_20, "two": only_80, "three": only_20}, tmp_path / "three.png")
    one, three = picture_in(tmp_path / "one.png"), picture_in(tmp_path / "three.png")
    assert one.width == three.width and three.height > 1.9 * one.height
    columns = [np.flatnonzero(blue(part).any(axis=0)) for part in _thirds(three)]
    assert [len(each) > 3 for each in columns] == [True] * 3  # each panel has its bar
    assert abs(columns[0].mean() - columns[2].mean()) < 2 and columns[1].mean() - columns[0].mean() > 400
    assert sorted(os.listdir(tmp_path)) == ["one.png", "three.png"]


def _thirds(picture: Image.Image) -> list[Image.Image]:
    height = picture.height
    top, bottom = 30, height - 45  # title, axis
    step = (bottom - top) / 3
    return [picture.crop((0, int(top + k * step), picture.width, int(top + (k + 1) * step))) for k in range(3)]


@pytest.mark.parametrize("name", ["costs $5 and $\\frac{$", "Jos\udce9\n\x1b[31m" + "x" * 300])
def test_any_name_of_a_data_set_can_be_drawn(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of letters without a shape, of a layout that does not fit
        draw_age_histograms({name: YOUNG}, tmp_path / "a.png")
    assert picture_in(tmp_path / "a.png").width > 500


def test_an_existing_picture_is_replaced_only_by_force_and_the_same_ages_give_the_same_bytes(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("mine")
    refused(draw_age_histograms, {"old": np.full(3, 120)}, path, match="exists.*--force")
    assert path.read_text() == "mine"
    contents = []
    for age in (120, 120, 100):  # ages above 100 are drawn in the last bar
        draw_age_histograms({"old": np.full(3, age)}, path, force=True)
        contents.append((path.read_bytes(), blue(picture_in(path))))
    assert contents[0][0] == contents[1][0] and Image.open(io.BytesIO(contents[0][0])).format == "PNG"
    assert np.array_equal(contents[0][1], contents[2][1]) and contents[0][1].any()


def test_what_cannot_be_drawn_is_refused(tmp_path):
    for ages_of, says in (
        ({}, "0 data sets"),
        ({str(k): YOUNG for k in range(41)}, "41 data sets"),
        ({"young": YOUNG, "empty": np.full(3, -1)}, "'empty' has no known ages"),
    ):
        refused(draw_age_histograms, ages_of, tmp_path / "a.png", match=says)
    assert os.listdir(tmp_path) == []


def test_a_rare_group_differs_from_an_empty_one():
    words = [age_histogram._in_words(share) for share in (0, 0.004, 0.5, 33.333)]
    assert words == ["0 %", "< 0.01 %", "0.50 %", "33.3 %"]
