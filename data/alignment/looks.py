"""Does a picture look like a face aligned to the five points? A cheap check that warns, and decides nothing.

Where edges lie tells, whichever side of them is darker (the whites of the eyes are darker than some skins and brighter
than others): eyes, brows, nose and mouth have many, cheeks and forehead few. LAYOUT is the mean over drawn faces of the
logarithm of edge strength in cells of 8 x 8 pixels. A picture's resemblance is the correlation of its own with that.

Pictures differ in sharpness and background, so what counts is a comparison: the picture is moved, turned and scaled in
some ways (ALTERNATIVES), and if one of these resembles an aligned face far more than the picture itself does, it is
probably the picture that is out of place. benchmarks/alignment_check.py makes LAYOUT and measures what is caught.
"""

import functools

import numpy as np

from data.alignment.template import TEMPLATE
from meta import IMAGE_SIZE

GREY = (0.299, 0.587, 0.114)  # luma of red, green, blue (ITU-R BT.601)
SIDE = IMAGE_SIZE // 2  # grey pixels are means of 2 x 2
NUM_CELLS = 14  # along a side; the outermost are left out: they show background
BLUR = 1.0  # of the grey pixels, standard deviation
LEAST_SPREAD = 0.05  # of a picture's layout: one without edges has none
# Limits that about 4 of 100 small photographs of fitting faces break (benchmarks/alignment_check.py --real); of drawn
# faces, which are sharper, tighter ones would let as many pass and catch more.
MAX_GAIN = 0.19  # in resemblance, by an alternative
MIN_RESEMBLANCE = 0.05

# (angle in degrees, scale, x and y in pixels): how the face of a picture may lie beside its place.
SHIFTS = ((-18, 0), (18, 0), (0, -18), (0, 18), (-14, -14), (14, -14), (-14, 14), (14, 14), (28, 0), (-28, 0), (0, 28),
          (0, -28))  # fmt: skip
ALTERNATIVES = (
    *((0.0, 1.0, float(x), float(y)) for x, y in SHIFTS),
    *((angle, 1.0, 0.0, 0.0) for angle in (-30.0, 30.0, -45.0, 45.0, 90.0, -90.0, 180.0)),
    *((0.0, scale, 0.0, 0.0) for scale in (0.5, 0.62, 1.5, 1.9)),
)


def looks_aligned(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 3, 112, 112) -> bool (N,): nothing speaks against an aligned face."""
    own, best = resemblances(images)
    return (own >= MIN_RESEMBLANCE) & (best - own <= MAX_GAIN)


def resemblances(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) correlations with the layout of aligned faces: of the pictures, and of their best alternatives."""
    grey = grey_pixels(images)
    own = layouts(grey) @ _direction()
    others = np.stack([layouts(moved) @ _direction() for moved in _alternatives(grey)])  # (A, N)
    return own, others.max(axis=0)


def grey_pixels(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 3, 112, 112) -> float32 (N, 56, 56)."""
    grey = np.einsum("nchw,c->nhw", images.astype(np.float32), np.float32(GREY))
    return grey.reshape(len(images), SIDE, 2, SIDE, 2).mean(axis=(2, 4))


def layouts(grey: np.ndarray) -> np.ndarray:
    """float32 (N, 56, 56) -> (N, 288) unit rows: log edge strength by cell, of upright edges and then of level ones."""
    from scipy.ndimage import gaussian_filter  # half a second, which only this shall cost

    smooth = gaussian_filter(grey, (0, BLUR, BLUR))
    edges = np.stack([np.abs(np.gradient(smooth, axis=axis)) for axis in (2, 1)], axis=1)  # (N, 2, 56, 56)
    cell = SIDE // NUM_CELLS
    strength = edges.reshape(len(grey), 2, NUM_CELLS, cell, NUM_CELLS, cell).mean(axis=(3, 5))
    layout = np.log(strength[:, :, 1:-1, 1:-1] + 1)  # (N, 2, 12, 12)
    layout -= layout.mean(axis=(2, 3), keepdims=True)
    rows = layout.reshape(len(grey), -1)
    length = np.sqrt(rows.shape[1]) * np.maximum(rows.std(axis=1, keepdims=True), LEAST_SPREAD)
    return rows / length


def displacement(angle: float, scale: float, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """(2, 2) and (2,): where places of an aligned face lie when it is turned about its centre, scaled and moved."""
    radians = np.deg2rad(angle)
    turn = scale * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    centre = TEMPLATE.mean(axis=0)
    return turn, centre + (x, y) - turn @ centre


def _alternatives(grey: np.ndarray):
    flat = grey.reshape(len(grey), -1)
    for places in _places():
        yield flat[:, places].reshape(-1, SIDE, SIDE)


@functools.lru_cache
def _places() -> np.ndarray:
    """(A, 56 * 56): which grey pixel stands where when an alternative is put right; the edge goes on outside."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([x, y], axis=-1).reshape(-1, 2) * 2 + 0.5  # their centres in the picture of 112 x 112
    found = []
    for alternative in ALTERNATIVES:
        turn, shift = displacement(*alternative)
        columns, rows = np.clip(np.rint((pixels @ turn.T + shift - 0.5) / 2), 0, SIDE - 1).astype(int).T
        found.append(rows * SIDE + columns)
    return np.stack(found)


@functools.lru_cache
def _direction() -> np.ndarray:
    row = np.array(LAYOUT, np.float32).ravel()
    return row / np.linalg.norm(row)


# Of 300 drawn faces and their mirror images, times 100: upright edges, then level ones, 12 rows of 12 cells each.
LAYOUT = (
    (-32, 47, 16, -33, -113, -131, -131, -113, -33, 16, 47, -32),
    (17, 81, 81, -6, -122, -145, -145, -122, -6, 81, 81, 17),
    (48, 141, 117, -59, -156, -195, -195, -156, -59, 117, 141, 48),
    (75, 189, 66, -119, -103, -146, -146, -103, -119, 66, 189, 75),
    (96, 196, 45, -15, 32, -3, -3, 32, -15, 45, 196, 96),
    (114, 179, 86, 188, 195, -1, -1, 195, 188, 86, 179, 114),
    (117, 167, 5, -102, -91, -27, -27, -91, -102, 5, 167, 117),
    (52, 146, -1, -108, -62, 2, 2, -62, -108, -1, 146, 52),
    (-29, 135, 7, -97, 12, 58, 58, 12, -97, 7, 135, -29),
    (-70, 126, 35, -86, -92, -130, -130, -92, -86, 35, 126, -70),
    (-129, 61, 102, -55, -59, -131, -131, -59, -55, 102, 61, -129),
    (-201, -97, 104, 38, -98, -128, -128, -98, 38, 104, -97, -201),
    (-86, -27, -19, 17, 27, 21, 21, 27, 17, -19, -27, -86),
    (-102, -34, 35, 52, 36, 42, 42, 36, 52, 35, -34, -102),
    (-108, -18, 39, -24, -62, -75, -75, -62, -24, 39, -18, -108),
    (-106, -11, 39, 100, 85, -79, -79, 85, 100, 39, -11, -106),
    (-85, -22, 38, 203, 161, -28, -28, 161, 203, 38, -22, -85),
    (-89, -66, 17, 271, 214, -73, -73, 214, 271, 17, -66, -89),
    (-67, -49, -89, 61, -10, -66, -66, -10, 61, -89, -49, -67),
    (-42, 7, -75, -91, -29, 92, 92, -29, -91, -75, 7, -42),
    (-112, -60, -104, -114, 7, 265, 265, 7, -114, -104, -60, -112),
    (-127, -33, -85, -99, 30, 161, 161, 30, -99, -85, -33, -127),
    (-133, 11, 73, -18, 121, 188, 188, 121, -18, 73, 11, -133),
    (-163, -59, 111, 119, 27, 66, 66, 27, 119, 111, -59, -163),
)
