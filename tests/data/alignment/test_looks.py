"""data/alignment/looks.py: where its layout comes from, what it does not depend on, what it catches."""

import numpy as np
import pytest

from benchmarks.alignment_check import LAYOUT_PEOPLE, TEST_PEOPLE, displaced, drawn_faces, layout_of
from data.alignment.looks import ALTERNATIVES, LAYOUT, _places, grey_pixels, looks_aligned, resemblances


@pytest.fixture(scope="module")
def faces():
    """Of people that the layout was not made of."""
    return drawn_faces(TEST_PEOPLE, 40)


def test_the_layout_is_that_of_drawn_faces():
    anew = layout_of(drawn_faces(LAYOUT_PEOPLE, 40))
    assert np.array(LAYOUT).shape == anew.shape == (24, 12)
    assert np.corrcoef(np.ravel(LAYOUT), anew.ravel())[0, 1] > 0.97
    upright = np.array(LAYOUT[:12])
    assert (upright == upright[:, ::-1]).all()  # a face and its mirror image look alike


def test_aligned_faces_pass_and_displaced_ones_are_caught(faces):
    assert looks_aligned(faces).sum() >= 39
    for how, least_share in (((45, 1, 0, 0), 0.9), ((180, 1, 0, 0), 0.9), ((0, 1, 16, 0), 0.7), ((0, 0.5, 0, 0), 0.85)):
        assert np.mean(~looks_aligned(displaced(faces, *how))) >= least_share, how


def test_what_has_no_edges_is_no_face():
    assert not looks_aligned(np.full((1, 3, 112, 112), 90, np.uint8)).any()


def test_light_and_dark_exchanged_is_the_same_layout(faces):
    """The whites of the eyes are darker than some skins and brighter than others."""
    np.testing.assert_allclose(resemblances(255 - faces), resemblances(faces), atol=1e-4)


def test_each_picture_is_judged_by_itself(faces):
    together = resemblances(faces[:3])
    np.testing.assert_allclose([resemblances(faces[i : i + 1]) for i in range(3)], np.transpose(together)[..., None],
                               atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("number", [0, 12, 19, 20])
def test_an_alternative_puts_a_face_right_that_lies_so(faces, number):
    grey = grey_pixels(displaced(faces[:4], *ALTERNATIVES[number])).reshape(4, -1)
    again = grey[:, _places()[number]].reshape(4, 56, 56)
    inner = (slice(None), slice(14, 48), slice(12, 44))
    for one, other in zip(again[inner], grey_pixels(faces[:4])[inner], strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.8
