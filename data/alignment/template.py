"""Faces turned, scaled and shifted so that eyes, nose and mouth lie where the networks expect them.

Places are pixel indices: (0, 0) is the centre of the first pixel, x to the right, y down, as landmark files have it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.transforms import decode_picture
from meta import IMAGE_SIZE, UserError
from utils.files import written_beside

# Eye at image left, eye at image right, nose tip, mouth corner at image left, mouth corner at image right; x and y in a
# picture of 112 x 112. Source: InsightFace, python-package/insightface/utils/face_align.py, which ArcFace's weights
# and the data sets around them were made with.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE.setflags(write=False)
POINT_NAMES = "eye at image left, eye at image right, nose tip, mouth corner at image left, mouth corner at image right"

HOW_TO_ALIGN = (  # for messages about pictures that aren't
    "`python prepare.py align FOLDER --detector FILE -o ALIGNED` aligns a folder of photographs, `python prepare.py "
    "align-fgnet` and the like data sets as they were released, embed.py --detector or --landmarks pictures while it "
    "embeds them (docs/PICTURES.md, From photographs)"
)
MIN_SPREAD = 1.0  # pixels, root mean square from the points' centre: what is less is no face
MIN_FLATNESS = 0.02  # second to first axis of the cloud of points: 0.75 in the template, less in profile, 0 on a line
MARGIN = 4  # pixels of the turned picture that the filters read beyond its edge
OVERSAMPLING = 2  # times as many pixels along a side, while the picture is turned


def template(size: int = IMAGE_SIZE) -> np.ndarray:
    """(5, 2) float64, the five places in an aligned picture of `size` pixels: the same framing at every size."""
    return (TEMPLATE + 0.5) * (size / IMAGE_SIZE) - 0.5  # + 0.5: pixels have their edges in common, not their centres


def check_points(points: np.ndarray) -> None:
    """Refuses five points (5, 2) that cannot be a face: not finite, in one place, on one line, or in a wrong order.

    A face may be turned by any angle; what it cannot be is mirrored. So eyes that were swapped, "left" and "right" as
    the person has them, and columns y x instead of x y are all found.

    Raises:
        UserError: with what is wrong.
    """
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise UserError(f"Five points of two finite numbers are needed, not an array {points.shape}: {POINT_NAMES}.")
    axes = np.linalg.svd(points - points.mean(0), compute_uv=False) / np.sqrt(5)
    if np.hypot(*axes) < MIN_SPREAD:
        raise UserError(f"The five points lie within a pixel of each other: give {POINT_NAMES}.")
    if axes[1] < MIN_FLATNESS * axes[0]:
        raise UserError(f"The five points lie on one line: give {POINT_NAMES}.")
    eye_left, eye_right, nose, mouth_left, mouth_right = points
    eyes, mouth = eye_right - eye_left, mouth_right - mouth_left
    across, down = eyes + mouth, (mouth_left + mouth_right - eye_left - eye_right) / 2
    height = np.hypot(*down)
    # y runs downwards, so x to y is a turn clockwise: down is across, turned clockwise, and not the other way round.
    turn = across[0] * down[1] - across[1] * down[0]
    # In profile both widths are near 0 and a small mistake of the landmarks turns one of them: that is no wrong order.
    least = -0.1 * height * np.hypot(*across)
    nose_place = (nose - (eye_left + eye_right) / 2) @ down / max(height, 1e-9) ** 2  # 0 at the eyes, 1 at the mouth
    if turn <= 0 or eyes @ across < least or mouth @ across < least or not 0 < nose_place < 1:
        raise UserError(f"The five points are in a wrong order or mirrored: the order is {POINT_NAMES}.")


def similarity(points: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """(2, 3) float64: place in the picture -> place in the aligned picture of `size` pixels, least squares.

    One angle, one scale, one shift, no shear and no mirroring. `points` (5, 2) in the order of TEMPLATE.
    Source: Umeyama, IEEE TPAMI 13, 1991, as scikit-image has it.

    Raises:
        UserError: for points that `check_points` refuses.
    """
    from skimage.transform import estimate_transform  # half a second, which only alignment shall cost

    points = np.asarray(points, np.float64)
    check_points(points)
    return estimate_transform("similarity", points, template(size)).params[:2]


def align(picture: Image.Image, points: np.ndarray, size: int = IMAGE_SIZE) -> Image.Image:
    """The face as RGB of size x size; black where the picture has nothing. `points` (5, 2) in the order of TEMPLATE.

    The picture is brought to twice the scale wanted by a bicubic filter that is as wide as shrinking asks for (without
    which hair and cloth become moire), turned, and halved by the same filter.

    Raises:
        UserError: for points that cannot be a face, or that lie far outside of the picture.
    """
    # Turned at twice the size and bilinear: PIL's bicubic turning moves a picture by up to 0.1 pixel, for its kernel
    # (a = -1) does not reproduce a slope; a bilinear one does, and what it blurs is lost in halving anyway.
    matrix = OVERSAMPLING * similarity(points, size)
    check_inside(points, picture.size)
    # From here on PIL's coordinates, aligned -> picture: pixel edges are whole numbers.
    turn = np.linalg.inv(matrix[:, :2])
    shift = 0.5 - turn @ (matrix[:, 2] + OVERSAMPLING / 2)
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    picture, turn, shift = _needed_part(picture, turn, shift, OVERSAMPLING * size)
    numbers = (turn[0, 0], turn[0, 1], shift[0], turn[1, 0], turn[1, 1], shift[1])
    large = (OVERSAMPLING * size, OVERSAMPLING * size)
    turned = picture.transform(large, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=0)
    return turned.resize((size, size), Image.Resampling.BICUBIC)


def check_inside(points: np.ndarray, picture_size: tuple[int, int]) -> None:
    """Refuses points that lie outside of the picture (width, height) by more than half of it.

    Such points belong to another picture, or to this one in another size.

    Raises:
        UserError: naming the first of them.
    """
    around = np.array(picture_size, np.float64)
    for x, y in points[((points < -0.5 * around) | (points > 1.5 * around)).any(1)]:
        raise UserError(
            f"The point {x:g} {y:g} lies far outside of the picture of {picture_size[0]} x {picture_size[1]} pixels: "
            "check that the landmarks were made on this picture in this size."
        )


def _needed_part(
    picture: Image.Image, turn: np.ndarray, shift: np.ndarray, size: int
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """The part of the picture that is needed, in the scale of the result of `size` pixels, and the mapping into it."""
    low, high = -MARGIN, size + MARGIN
    corners = np.array([[low, low], [high, low], [low, high], [high, high]]) @ turn.T + shift
    first = np.clip(np.floor(corners.min(0)), 0, picture.size).astype(int)
    last = np.clip(np.ceil(corners.max(0)), 0, picture.size).astype(int)
    if (first >= last).any():
        raise UserError("The face lies outside of the picture: check that the landmarks were made on this picture.")
    part = last - first
    scaled = np.maximum(np.rint(part / np.hypot(turn[0, 0], turn[1, 0])), 1).astype(int)
    picture = picture.resize(tuple(scaled.tolist()), Image.Resampling.BICUBIC, box=(*first.tolist(), *last.tolist()))
    change = scaled / part  # the scale, but for the rounding to whole pixels
    return picture, change[:, None] * turn, change * (shift - first)


# ---------------------------------------------------------------------------------------------------- to be looked at

NUM_ON_SHEET = 64
COLUMNS = 8
CELL = 168  # pixels
CAPTION = 14  # pixels
MARK_COLOUR = (0, 255, 0)


def alignment_sheet(pictures: Sequence[str | Path | Image.Image], output: str | Path) -> None:
    """A PNG of up to 64 aligned faces, evenly picked from `pictures`, each with the template's five places marked.

    Where the marks do not lie on eyes, nose tip and mouth corners, the landmarks were misread.

    Raises:
        UserError: for a picture that can't be decoded, or no pictures.
    """
    if not pictures:
        raise UserError("There are no aligned pictures to show: give at least one.")
    picked = np.unique(np.linspace(0, len(pictures) - 1, NUM_ON_SHEET).round().astype(int))
    num_rows = -(-len(picked) // COLUMNS)
    sheet = Image.new("RGB", (min(COLUMNS, len(picked)) * CELL, num_rows * (CELL + CAPTION)), "white")
    for place, i in enumerate(picked.tolist()):
        picture = pictures[i]
        left, top = place % COLUMNS * CELL, place // COLUMNS * (CELL + CAPTION)
        if not isinstance(picture, Image.Image):
            caption = Path(picture).name.encode("ascii", "replace").decode()[:28]  # what the built-in font can draw
            ImageDraw.Draw(sheet).text((left + 3, top + CELL + 1), caption, fill="black")
            picture = decode_picture(picture)
        sheet.paste(_marked(picture), (left, top))
    with written_beside(output) as file:
        sheet.save(file, "PNG")


def _marked(picture: Image.Image) -> Image.Image:
    """The picture in the size of a cell; crosses that leave open what they point at."""
    picture = picture.resize((CELL, CELL), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for x, y in template(CELL):
        for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            draw.line((x + 3 * across, y + 3 * down, x + 7 * across, y + 7 * down), fill=MARK_COLOUR)
    return picture
