"""Faces in photographs, found by a detector that the user brings: YuNet as an ONNX file, run by OpenCV.

OpenCV is needed for nothing else, so it is imported here alone: `pip install opencv-python-headless`. The model is
among OpenCV's own, https://github.com/opencv/opencv_zoo: `face_detection_yunet_2023mar.onnx`, or the same with inputs
of any size, `face_detection_yunet_2026may.onnx`.
"""

import functools
import os
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from meta import UserError, wrong_file

MAX_SIDE = 640  # pixels: what is larger is shrunk, for YuNet was trained on faces of some 10 to 300 pixels
MIN_SCORE = 0.8
TRIAL_PICTURE = Image.new("RGB", (320, 320), (128, 128, 128))  # without a face: what counts is that it can be searched
NUM_CHARACTERS_SHOWN = 120  # of OpenCV's own words
WHERE_TO_GET = "give YuNet's, face_detection_yunet_2023mar.onnx of https://github.com/opencv/opencv_zoo"


class DetectorError(UserError):
    """The detector can't be used at all: a fault of no picture, so no picture is skipped because of it."""


@functools.lru_cache(maxsize=1)
def open_detector(path: str) -> Any:
    """OpenCV's FaceDetectorYN with the model at `path`, tried on a picture without a face; once in each process.

    Raises:
        DetectorError: without OpenCV or the file, and for a file that is no such model.
    """
    try:
        import cv2
    except ImportError:
        raise DetectorError("--detector needs OpenCV: pip install opencv-python-headless.") from None
    if not os.path.exists(path):
        raise DetectorError(f"--detector {path} does not exist: {WHERE_TO_GET}.")
    if wrong := wrong_file(path, "ONNX file"):
        raise DetectorError(f"--detector {path} {wrong[0]}: {wrong[1]}, or {WHERE_TO_GET}.")
    be_silent(cv2)  # what goes wrong is said in the sentences below
    try:
        detector = cv2.FaceDetectorYN.create(path, "", (MAX_SIDE, MAX_SIDE), MIN_SCORE)
    except cv2.error as error:
        raise DetectorError(
            f"--detector {path} is no ONNX model that OpenCV can run ({_reason(error)}): {WHERE_TO_GET}."
        ) from None
    try:
        find_faces(detector, TRIAL_PICTURE)
    except DetectorError:
        raise
    except UserError as error:
        raise DetectorError(f"--detector {path} is a network of another kind, {error}: {WHERE_TO_GET}.") from None
    return detector


def be_silent(cv2: ModuleType) -> None:
    """OpenCV logs nothing from now on."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # of OpenCV 4, of OpenCV 5
    set_level(0)


def find_faces(detector: Any, picture: Image.Image) -> np.ndarray:
    """The five points of each face in an RGB picture, (F, 5, 2) float64 in the order of alignment.TEMPLATE.

    The face with the largest box comes first; F is 0 where there is none. `detector` is `open_detector`'s.

    Raises:
        UserError: OpenCV can't search this picture.
        DetectorError: the detector gives something else than YuNet does.
    """
    shrink = min(1.0, MAX_SIDE / max(picture.size))
    size = tuple(max(1, round(side * shrink)) for side in picture.size)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC) if size != picture.size else picture)
    try:
        detector.setInputSize(size)
        _, rows = detector.detect(np.ascontiguousarray(pixels[:, :, ::-1]))  # OpenCV has blue first
    except MemoryError:
        raise
    except Exception as error:  # cv2.error, which only OpenCV itself could name
        raise UserError(f"OpenCV can't search {size[0]} x {size[1]} pixels with it ({_reason(error)})") from None
    if rows is None:
        return np.zeros((0, 5, 2))
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or rows.shape[1] != 15:
        raise DetectorError(f"--detector gives an array {rows.shape}, YuNet gives 15 numbers a face: {WHERE_TO_GET}.")
    # x, y, width, height, then the points, then the score. YuNet's "right eye" is the person's, at image left.
    rows = rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]
    scale = np.array(picture.size) / size
    return (rows[:, 4:14].reshape(-1, 5, 2) + 0.5) * scale - 0.5  # pixels have their edges in common


def _reason(error: Exception) -> str:
    """OpenCV's own words in one line, cut short; `err` of cv2.error lacks the place in its source."""
    words = str(getattr(error, "err", "") or error).split()
    return " ".join(word for word in words if word != ">")[:NUM_CHARACTERS_SHOWN]  # ">" begins each of its lines
