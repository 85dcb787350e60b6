"""Which face is meant, and what is noted about it."""

import numpy as np
import pytest

from data.alignment.choice import KINDS, choose_face, notes_on
from data.alignment.detectors import FoundFaces
from data.alignment.template import TEMPLATE
from meta import UserError

SIZE = (400, 300)
CENTRE = np.array([200, 150]) - TEMPLATE.mean(0)
LARGE, MIDDLE, DOUBTFUL = 1.5 * TEMPLATE, TEMPLATE + CENTRE, TEMPLATE + (280, 0)


def found(*faces):
    return FoundFaces(np.array([points for points, _ in faces]).reshape(-1, 5, 2), np.array([s for _, s in faces]))


def kinds(notes):
    return [note.kind for note in notes]


def test_the_largest_or_the_central_face_is_taken_and_others_are_noted():
    faces = found((LARGE, 0.9), (MIDDLE, 0.8), (DOUBTFUL, 0.7))
    for how, points in (("largest", LARGE), ("centre", MIDDLE)):
        chosen, notes = choose_face(faces, how, 0.8, SIZE, "x.jpg")
        np.testing.assert_array_equal(chosen, points)
        assert kinds(notes) == ["several"] and "2 faces were found in 'x.jpg'" in notes[0].sentence


def test_only_one_face_is_an_error_for_several_and_doubtful_ones_do_not_count_beside_a_sure_one():
    with pytest.raises(UserError, match="2 faces were found in 'x.jpg': crop it to one, or give --face largest"):
        choose_face(found((LARGE, 0.9), (MIDDLE, 0.8)), "only", 0.8, SIZE, "x.jpg")
    chosen, notes = choose_face(found((LARGE, 0.7), (MIDDLE, 0.8)), "only", 0.8, SIZE, "x.jpg")
    np.testing.assert_array_equal(chosen, MIDDLE)
    assert notes == ()


def test_a_face_below_the_stated_score_is_taken_where_there_is_no_other_and_noted():
    chosen, notes = choose_face(found((DOUBTFUL, 0.714)), "only", 0.8, SIZE, "x.jpg")
    np.testing.assert_array_equal(chosen, DOUBTFUL)
    assert kinds(notes) == ["unsure"] and "a score of 0.71, less than 0.8" in notes[0].sentence
    with pytest.raises(UserError, match="no face was found in 'x.jpg'"):
        choose_face(found(), "largest", 0.8, SIZE, "x.jpg")


def turned(points, degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (points - points.mean(0)) @ np.array([[cos, sin], [-sin, cos]]) + points.mean(0)


@pytest.mark.parametrize(("points", "expected"), [
    (MIDDLE, []), (turned(MIDDLE, 59), []), (turned(MIDDLE, -59), []), (turned(MIDDLE, 61), ["turned"]),
    (turned(MIDDLE, 180), ["turned"]), (0.51 * TEMPLATE + 100, []), (0.49 * TEMPLATE + 100, ["tiny"]),
    (TEMPLATE, []), (TEMPLATE - (10, 0), []), (TEMPLATE - (13, 0), ["cut"]), (TEMPLATE + (305, 0), ["cut"]),
    (turned(0.4 * TEMPLATE - (25, 0), 90), ["turned", "tiny", "cut"]),
])  # fmt: skip
def test_a_face_that_is_turned_tiny_or_cut_off_is_noted(points, expected):
    notes = notes_on(points, SIZE, "x.jpg")
    assert kinds(notes) == expected and set(expected) <= set(KINDS)
    assert all("'x.jpg'" in note.sentence for note in notes)
