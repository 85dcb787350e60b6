"""data/alignment/template.py: where pixels land, what is refused, and what shrinking does to fine patterns."""

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from data.alignment.template import (
    CAPTION,
    CELL,
    MARK_COLOUR,
    TEMPLATE,
    align,
    alignment_sheet,
    check_points,
    similarity,
    template,
)
from meta import UserError


def turned(points, degrees, scale, shift):
    """(5, 2) points turned clockwise about their centre, scaled, and moved to `shift`."""
    angle = np.radians(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - points.mean(0)) @ matrix.T + shift


def dots(points, size, radius):
    """A picture, size x size, with a soft dot of that deviation (pixels) at each point: places as pixel indices."""
    y, x = np.mgrid[:size, :size]
    light = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * radius**2)) for u, v in points)
    return Image.fromarray(np.rint(255 * np.minimum(light, 1)).astype(np.uint8)).convert("RGB")


def centroids(picture, places, reach):
    """(5, 2) centre of mass of the light around each of `places`."""
    light = np.asarray(picture, float)[..., 0]
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    found = []
    for u, v in places:
        weight = light * ((x - u) ** 2 + (y - v) ** 2 < reach**2) * (light > 3)
        found.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(found)


@pytest.mark.parametrize("degrees", [0, 0.3, 45, -133, 180])
@pytest.mark.parametrize("scale", [0.4, 1.31, 3.7])
def test_dots_at_the_landmarks_land_on_the_template_to_a_twentieth_of_a_pixel(degrees, scale):
    size = int(150 * scale)
    points = turned(TEMPLATE, degrees, scale, size / 2 + np.array([0.3, -0.4]))
    face = align(dots(points, size, 1.8 * scale), points)
    assert (face.size, face.mode) == ((112, 112), "RGB")
    assert np.abs(centroids(face, TEMPLATE, 7) - TEMPLATE).max() < 0.05


@pytest.mark.parametrize("size", [56, 112, 224])
def test_the_framing_is_the_same_at_every_size(size):
    points = turned(TEMPLATE, 20, 2, np.array([150.0, 150.0]))
    face = align(dots(points, 300, 6), points, size)
    assert face.size == (size, size)
    assert np.abs(centroids(face, template(size), 0.08 * size) - template(size)).max() < 0.05 * size / 112
    # A larger one resized is the smaller one, which scaling places from corner to corner would not give.
    small = np.asarray(face.resize((56, 56), Image.Resampling.BOX), float)
    assert np.abs(small - np.asarray(align(dots(points, 300, 6), points, 56), float)).max() < 12


def test_five_different_faces_give_the_least_squares_similarity():
    """Slow and plain: a search over the four numbers of a similarity."""
    from scipy.optimize import minimize

    random = np.random.default_rng(0)
    for _ in range(5):
        points = turned(TEMPLATE, random.uniform(-180, 180), 2.2, (300, 200)) + random.normal(0, 6, (5, 2))

        def distance(numbers, points=points):
            a, b, x, y = numbers
            return np.square(points @ np.array([[a, b], [-b, a]]) + (x, y) - TEMPLATE).sum()

        matrix = similarity(points)
        best = minimize(distance, (matrix[0, 0], matrix[1, 0], 0, 0), method="BFGS", options={"gtol": 1e-8}).x
        assert np.abs(matrix - [[best[0], -best[1], best[2]], [best[1], best[0], best[3]]]).max() < 1e-3


def test_what_lies_outside_of_the_picture_is_black_and_the_rest_is_not():
    points = template() - (30, 0)  # so that 30 columns at the left of the face are missing
    face = np.asarray(align(Image.new("RGB", (200, 200), (250, 120, 60)), points))
    assert not face[:, :29].any()
    assert (face[:, 32:] == (250, 120, 60)).all()
    grey = align(Image.new("L", (150, 150), 77), TEMPLATE + 15)
    assert np.array_equal(np.asarray(grey), np.full((112, 112, 3), 77))  # RGB


def area_average(pixels, points, samples=24):
    """Slow and plain, (H, W) -> (112, 112): a pixel of the face is the mean of many places in it, nearest neighbour."""
    matrix = np.vstack([similarity(points), [0, 0, 1]])
    back = np.linalg.inv(matrix)
    inside = (np.arange(samples) + 0.5) / samples - 0.5
    total = np.zeros((112, 112))
    row, column = np.mgrid[:112, :112].astype(float)
    for dy in inside:
        for dx in inside:
            x = back[0, 0] * (column + dx) + back[0, 1] * (row + dy) + back[0, 2]
            y = back[1, 0] * (column + dx) + back[1, 1] * (row + dy) + back[1, 2]
            i, j = np.rint(y).astype(int), np.rint(x).astype(int)
            good = (i >= 0) & (i < pixels.shape[0]) & (j >= 0) & (j < pixels.shape[1])
            total[good] += pixels[i[good], j[good]]
    return total / samples**2


def without_filter(picture, points):
    back = np.linalg.inv(np.vstack([similarity(points), [0, 0, 1]]))
    back[:2, 2] += 0.5 - back[:2, :2] @ (0.5, 0.5)
    return picture.transform((112, 112), Image.Transform.AFFINE, tuple(back[:2].ravel()), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("scale", [2.3, 6.0])
def test_a_pattern_finer_than_the_face_shows_no_moire(scale):
    size = int(170 * scale)
    points = turned(TEMPLATE, 11, scale, np.array([size / 2, size / 2]))
    y, x = np.mgrid[:size, :size]
    pixels = np.rint(127.5 + 127.5 * np.sin(2 * np.pi * (x + 0.3 * y) / 2.9)).astype(np.uint8)
    picture = Image.fromarray(pixels).convert("RGB")
    middle = (slice(10, 102), slice(10, 102))
    plain = area_average(pixels.astype(float), points)[middle]
    ours = np.asarray(align(picture, points), float)[..., 0][middle]
    aliased = np.asarray(without_filter(picture, points), float)[..., 0][middle]
    assert aliased.std() > 60  # the pattern comes back as coarse stripes; right is an even grey
    assert ours.std() < min(5, plain.std() + 2)
    assert abs(ours.mean() - plain.mean()) < 1
    assert np.abs(ours - plain).mean() < np.abs(aliased - plain).mean() / 4


def test_a_coarse_pattern_keeps_its_contrast():
    points = turned(TEMPLATE, -25, 3.0, np.array([220.0, 220.0]))
    y, x = np.mgrid[:440, :440]
    pixels = np.rint(127.5 + 100 * np.sin(2 * np.pi * x / 30) * np.sin(2 * np.pi * y / 30)).astype(np.uint8)
    ours = np.asarray(align(Image.fromarray(pixels).convert("RGB"), points), float)[..., 0]
    plain = area_average(pixels.astype(float), points, samples=8)
    assert np.abs(ours - plain)[10:102, 10:102].mean() < 1.5


SMILE = TEMPLATE + [[0, 0], [0, 0], [0, 0], [-12, 0], [12, 0]]  # a mouth wider than the eyes are apart
MISREAD = {
    "eyes swapped": TEMPLATE[[1, 0, 2, 3, 4]], "eyes swapped above a smile": SMILE[[1, 0, 2, 3, 4]],
    "mouth corners swapped": TEMPLATE[[0, 1, 2, 4, 3]],
    "left and right as the person has them": TEMPLATE[[1, 0, 2, 4, 3]],
    "eyes and mouth swapped": TEMPLATE[[3, 4, 2, 0, 1]], "y before x": TEMPLATE[:, ::-1],
    "y upwards": TEMPLATE * (1, -1) + (0, 112), "nose first": TEMPLATE[[2, 0, 1, 3, 4]],
    "nose last": TEMPLATE[[0, 1, 3, 4, 2]], "mirrored": TEMPLATE * (-1, 1) + (112, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", MISREAD)
@pytest.mark.parametrize("degrees", [0, 70, 180])
def test_points_in_a_wrong_order_are_refused_at_any_angle(case, degrees):
    with pytest.raises(UserError, match="wrong order or mirrored: the order is eye at image left"):
        similarity(turned(MISREAD[case], degrees, 1.7, np.array([200.0, 200.0])))


def test_no_face_that_is_merely_turned_is_refused():
    """Yaw to 80 degrees and pitch to 30, of a head with a nose 15 pixels high."""
    depth = np.array([0, 0, 15.0, 0, 0])
    for yaw in range(-80, 81, 10):
        for pitch in range(-30, 31, 10):
            x, y = (TEMPLATE - TEMPLATE.mean(0)).T
            x = x * np.cos(np.radians(yaw)) + depth * np.sin(np.radians(yaw))
            y = y * np.cos(np.radians(pitch)) - depth * np.sin(np.radians(pitch))
            for roll in (0, 60, 180):
                check_points(turned(np.stack([x, y], 1), roll, 2, np.array([200.0, 200.0])))


@pytest.mark.parametrize("points, words", [
    (np.full((5, 2), 40.0), "within a pixel"), (TEMPLATE / 1000, "within a pixel"),
    (np.outer(np.arange(5.0), [3, 4]) + 10, "on one line"), (TEMPLATE * (1, 0.0001), "on one line"),
    (np.where(np.arange(10).reshape(5, 2) == 3, np.nan, TEMPLATE), "two finite numbers"),
    (np.where(np.arange(10).reshape(5, 2) == 3, np.inf, TEMPLATE), "two finite numbers"),
    (TEMPLATE[:4], r"not an array \(4, 2\)"), (TEMPLATE.ravel(), r"not an array \(10,\)"),
])  # fmt: skip
def test_points_that_are_no_face_are_refused(points, words):
    refused(similarity, points, match=words)


def test_points_of_another_picture_are_refused():
    picture = Image.new("RGB", (100, 80))
    align(picture, TEMPLATE + (30, 20))  # some of them outside, as of faces that are cut off
    for points in (TEMPLATE * 2, TEMPLATE - 200, TEMPLATE / 20 + (120, 90)):  # the last small and near, but not in it
        refused(align, picture, points, match="outside of the picture")


def test_the_sheet_has_64_faces_from_the_first_to_the_last_with_marks_where_the_template_is(tmp_path):
    pictures = [Image.new("RGB", (112, 112), (i, 0, 255 - i)) for i in range(200)]
    alignment_sheet(pictures, tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (8 * (CELL + CAPTION), 8 * CELL, 3)
    corners = pixels[:: CELL + CAPTION, ::CELL]
    assert tuple(corners[0, 0]) == (0, 0, 255) and tuple(corners[7, 7]) == (199, 0, 56)
    assert (np.diff(corners.reshape(64, 3)[:, 0].astype(int)) > 0).all()
    marked = (pixels[:CELL, :CELL] == MARK_COLOUR).all(-1)
    y, x = np.nonzero(marked)
    for u, v in template(CELL):
        near = (np.abs(x - u) < 9) & (np.abs(y - v) < 9)
        assert near.sum() > 12 and abs(x[near].mean() - u) < 1 and abs(y[near].mean() - v) < 1
        assert not marked[round(v), round(u)]  # the eye itself stays visible
    assert all(min(np.abs(template(CELL) - (u, v)).max(1)) < 9 for u, v in zip(x, y, strict=True))


def test_a_sheet_of_few_files_is_small_and_names_them(tmp_path):
    for name in ("a.png", "Jos\xe9.png"):
        Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    alignment_sheet([tmp_path / "a.png", tmp_path / "Jos\xe9.png"], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * CELL, CELL + CAPTION)
        captions = np.asarray(sheet)[CELL:]
    assert (captions[:, :CELL] < 128).any() and (captions[:, CELL:] < 128).any()
    refused(alignment_sheet, [], tmp_path / "sheet.png", match="no aligned pictures")
