"""Which of the faces in a photograph is meant, and what should be known about it before it is trusted."""

import math
from typing import Literal, NamedTuple

import numpy as np

from data.alignment.detectors import FoundFaces
from data.alignment.template import similarity
from meta import IMAGE_SIZE, UserError

FaceChoice = Literal["largest", "centre", "only"]
FACE_HELP = (
    "Which face, where the detector finds several: the largest, the one nearest to the picture's centre, or only: "
    "several are an error."
)

MAX_TURN = 60  # degrees: more is rarely how a photograph was meant, and may be the detector's mistake
MIN_SOURCE_SIDE = IMAGE_SIZE / 2  # pixels of the photograph along a side of the aligned face: what has less is enlarged
MAX_CUT = 0.1  # share of the aligned face that lies beyond the photograph's edge
GRID = (np.indices((16, 16)).reshape(2, -1).T + 0.5) / 16  # (256, 2) places in the unit square


class Note(NamedTuple):
    """Something to be known about one picture."""

    kind: str  # one of KINDS
    sentence: str


KINDS = {  # for counts of many pictures
    "several": "with several faces",
    "unsure": "with a face that the detector is not sure of",
    "turned": f"with a face turned by more than {MAX_TURN} degrees",
    "tiny": "with a tiny face, enlarged more than twice",
    "cut": "with a face cut off by the picture's edge",
    "unaligned": "of the aligned size whose alignment the detector does not confirm",
}


def choose_face(
    found: FoundFaces, how: FaceChoice, sure_score: float, picture_size: tuple[int, int], name: str
) -> tuple[np.ndarray, tuple[Note, ...]]:
    """The five points (5, 2) of the face that is meant in the picture (width, height), with notes.

    Faces of `sure_score` or more count; where there is none of them, the others do.

    Raises:
        UserError: no face was found, or several and only one is allowed.
    """
    if not len(found.points):
        raise UserError(f"no face was found in {name!r}: give a picture that shows one from the front, or its five "
                        "points by --landmarks.")  # fmt: skip
    rows = np.flatnonzero(found.scores >= sure_score)
    rows = rows if len(rows) else np.arange(len(found.scores))
    notes = []
    if len(rows) > 1:
        if how == "only":
            raise UserError(f"{len(rows)} faces were found in {name!r}: crop it to one, or give --face largest or "
                            "centre.")  # fmt: skip
        which = "the largest one" if how == "largest" else "the one nearest to the centre"
        notes.append(Note("several", f"{len(rows)} faces were found in {name!r}: {which} is taken"))
    if how == "centre":
        centre = (np.array(picture_size) - 1) / 2
        row = rows[np.linalg.norm(found.points[rows].mean(1) - centre, axis=1).argmin()]
    else:
        row = rows[0]
    if found.scores[row] < sure_score:
        notes.append(Note("unsure", f"the face found in {name!r} has a score of {found.scores[row]:.2f}, less than "
                          f"{sure_score:g}: check that it is one"))  # fmt: skip
    return found.points[row], tuple(notes)


def notes_on(points: np.ndarray, picture_size: tuple[int, int], name: str) -> tuple[Note, ...]:
    """What is unusual about a face with these five points (5, 2) in a picture (width, height).

    Raises:
        UserError: the points can't be a face.
    """
    matrix = similarity(points)
    angle = math.degrees(math.atan2(-matrix[1, 0], matrix[0, 0]))  # of the face in the photograph, clockwise
    side = IMAGE_SIZE / math.hypot(matrix[0, 0], matrix[1, 0])  # pixels
    places = (IMAGE_SIZE * GRID - 0.5 - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T  # in the photograph
    cut = ((places < -0.5) | (places > np.array(picture_size) - 0.5)).any(1).mean()
    notes = []
    if abs(angle) > MAX_TURN:
        notes.append(Note("turned", f"the face in {name!r} is turned by {abs(angle):.0f} degrees: check that the "
                          "picture stands upright"))  # fmt: skip
    if side < MIN_SOURCE_SIDE:
        notes.append(Note("tiny", f"the face in {name!r} has {side:.0f} pixels along a side and is enlarged to "
                          f"{IMAGE_SIZE}: take a larger picture"))  # fmt: skip
    if cut > MAX_CUT:
        notes.append(Note("cut", f"{cut:.0%} of the face in {name!r} lie beyond the picture's edge and are black"))
    return tuple(notes)
