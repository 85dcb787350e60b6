"""Faces in photographs, found by a detector that the user brings: YuNet as an ONNX file, run by OpenCV.

OpenCV is needed for nothing else, so it is imported here alone: `pip install opencv-python-headless`. The model,
`face_detection_yunet_2023mar.onnx`, is among OpenCV's own: https://github.com/opencv/opencv_zoo.
"""

import functools
import os
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from meta import UserError

MAX_SIDE = 640  # pixels: what is larger is shrunk, for YuNet was trained on faces of some 10 to 300 pixels
MIN_SCORE = 0.8


def check_detector(path: str) -> ModuleType:
    """OpenCV, if that and the model's file are there; the file is not read yet.

    Raises:
        UserError: without OpenCV or without the file.
    """
    try:
        import cv2
    except ImportError:
        raise UserError("--detector needs OpenCV: pip install opencv-python-headless.") from None
    if not os.path.isfile(path):
        raise UserError(
            f"--detector {path} does not exist: give the path of face_detection_yunet_2023mar.onnx, which is at "
            "https://github.com/opencv/opencv_zoo."
        )
    return cv2


@functools.lru_cache(maxsize=1)
def open_detector(path: str) -> Any:
    """OpenCV's FaceDetectorYN with the model at `path`; once in each process.

    Raises:
        UserError: as `check_detector`, and for a file that is no such model.
    """
    cv2 = check_detector(path)
    be_silent(cv2)  # what goes wrong is said in the sentence below
    try:
        return cv2.FaceDetectorYN.create(path, "", (MAX_SIDE, MAX_SIDE), MIN_SCORE)
    except cv2.error as error:
        reason = " ".join(str(getattr(error, "err", "") or error).split())[:120]
        raise UserError(
            f"--detector {path} is no ONNX model that OpenCV can run ({reason}): give YuNet's, "
            "face_detection_yunet_2023mar.onnx."
        ) from None


def be_silent(cv2: ModuleType) -> None:
    """OpenCV logs nothing from now on."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # of OpenCV 4, of OpenCV 5
    set_level(0)


def find_faces(detector: Any, picture: Image.Image) -> np.ndarray:
    """The five points of each face in an RGB picture, (F, 5, 2) float64 in the order of alignment.TEMPLATE.

    The face with the largest box comes first; F is 0 where there is none. `detector` is `open_detector`'s.

    Raises:
        UserError: for a detector that gives something else than YuNet does.
    """
    shrink = min(1.0, MAX_SIDE / max(picture.size))
    size = tuple(max(1, round(side * shrink)) for side in picture.size)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC) if size != picture.size else picture)
    detector.setInputSize(size)
    _, rows = detector.detect(np.ascontiguousarray(pixels[:, :, ::-1]))  # OpenCV has blue first
    if rows is None:
        return np.zeros((0, 5, 2))
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or rows.shape[1] != 15:
        raise UserError(f"--detector gives an array {rows.shape}, YuNet gives 15 numbers a face: give its ONNX file.")
    # x, y, width, height, then the points, then the score. YuNet's "right eye" is the person's, at image left.
    rows = rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]
    scale = np.array(picture.size) / size
    return (rows[:, 4:14].reshape(-1, 5, 2) + 0.5) * scale - 0.5  # pixels have their edges in common
