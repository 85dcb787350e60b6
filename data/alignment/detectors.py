"""Faces in photographs, found by a detector that the user brings as an ONNX file: the registry, and YuNet.

A detector is a class with `open(path)` and `find_faces(picture)`, registered under its name; adding one touches this
file alone. Which of them a file is for is found out by trying.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from meta import UserError
from utils.wrong_files import wrong_file

TRIAL_PICTURE = Image.new("RGB", (320, 320), (128, 128, 128))  # without a face: what counts is that it can be searched
NUM_CHARACTERS_SHOWN = 120  # of OpenCV's own words


class DetectorError(UserError):
    """The detector can't be used at all: a fault of no picture, so no picture is skipped because of it."""


class Detector(Protocol):
    """Finds faces in pictures."""

    @classmethod
    def open(cls, path: str) -> "Detector":
        """The detector of this file. Raises DetectorError for a file that is no such model."""

    def find_faces(self, picture: Image.Image) -> np.ndarray:
        """The five points of each face in an RGB picture, (F, 5, 2) float64 in the order of template.TEMPLATE.

        The face with the largest box comes first; F is 0 where there is none.

        Raises:
            UserError: this picture can't be searched.
            DetectorError: the model returns something else than such a detector does.
        """


@dataclass(frozen=True)
class DetectorEntry:
    """A detector in the registry, and where its file can be had."""

    name: str
    file_name: str
    source: str
    needs: str
    open: Callable[[str], Detector]


DETECTORS: dict[str, DetectorEntry] = {}


def register_detector(name: str, file_name: str, source: str, needs: str) -> Callable[[type], type]:
    """A decorator that puts a class of detectors into the registry."""

    def register(detector: type) -> type:
        DETECTORS[name] = DetectorEntry(name, file_name, source, needs, detector.open)
        return detector

    return register


def where_to_get() -> str:
    return "give " + " or ".join(f"{one.name}'s, {one.file_name} of {one.source}" for one in DETECTORS.values())


def detector_help() -> str:
    """The help of the flag --detector."""
    kinds = " or ".join(f"{one.name} ({one.file_name}; needs {one.needs})" for one in DETECTORS.values())
    return f"Face detector as an ONNX file, to find faces in photographs: {kinds}."


@functools.lru_cache(maxsize=1)
def open_detector(path: str) -> Detector:
    """The first detector of the registry that can use the file, tried on a picture without a face; once a process.

    Raises:
        DetectorError: none can use it; the reason is that of the first.
    """
    reasons = []
    for entry in DETECTORS.values():
        try:
            detector = entry.open(path)
            detector.find_faces(TRIAL_PICTURE)
            return detector
        except DetectorError as error:
            reasons.append(error)
        except UserError as error:
            reasons.append(DetectorError(f"--detector {path} is a network of another kind, {error}: {where_to_get()}."))
    raise reasons[0] from None


def check_file(path: str) -> None:
    """Raises DetectorError for a file that is missing or no ONNX file by its first bytes."""
    if not os.path.exists(path):
        raise DetectorError(f"--detector {path} does not exist: {where_to_get()}.")
    if wrong := wrong_file(path, "ONNX file"):
        raise DetectorError(f"--detector {path} {wrong[0]}: {wrong[1]}, or {where_to_get()}.")


def be_silent(cv2: ModuleType) -> None:
    """OpenCV logs nothing from now on."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # of OpenCV 4, of OpenCV 5
    set_level(0)


# -------------------------------------------------------------------------------------------------------------- YuNet


@register_detector("YuNet", "face_detection_yunet_2023mar.onnx", "https://github.com/opencv/opencv_zoo", needs="OpenCV")
class YuNet:
    """YuNet, run by OpenCV, which nothing else here needs; `face_detection_yunet_2026may.onnx` works too."""

    MAX_SIDE = 640  # pixels: what is larger is shrunk, for YuNet was trained on faces of some 10 to 300 pixels
    MIN_SCORE = 0.8

    def __init__(self, detector: Any):
        self._detector = detector  # OpenCV's FaceDetectorYN

    @classmethod
    def open(cls, path: str) -> "YuNet":
        try:
            import cv2
        except ImportError:
            raise DetectorError("--detector needs OpenCV: pip install opencv-python-headless.") from None
        check_file(path)
        be_silent(cv2)  # the errors below have sentences of their own
        try:
            return cls(cv2.FaceDetectorYN.create(path, "", (cls.MAX_SIDE, cls.MAX_SIDE), cls.MIN_SCORE))
        except cv2.error as error:
            raise DetectorError(
                f"--detector {path} is no ONNX model that OpenCV can run ({_reason(error)}): {where_to_get()}."
            ) from None

    def find_faces(self, picture: Image.Image) -> np.ndarray:
        shrink = min(1.0, self.MAX_SIDE / max(picture.size))
        size = tuple(max(1, round(side * shrink)) for side in picture.size)
        pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC) if size != picture.size else picture)
        try:
            self._detector.setInputSize(size)
            _, rows = self._detector.detect(np.ascontiguousarray(pixels[:, :, ::-1]))  # OpenCV has blue first
        except MemoryError:
            raise
        except Exception as error:  # cv2.error, which only OpenCV itself could name
            raise UserError(f"OpenCV can't search {size[0]} x {size[1]} pixels with it ({_reason(error)})") from None
        if rows is None:
            return np.zeros((0, 5, 2))
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != 15:
            raise DetectorError(
                f"--detector gives an array {rows.shape}, YuNet gives 15 numbers a face: {where_to_get()}."
            )
        # x, y, width, height, then the points, then the score. YuNet's "right eye" is the person's, at image left.
        rows = rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]
        scale = np.array(picture.size) / size
        return (rows[:, 4:14].reshape(-1, 5, 2) + 0.5) * scale - 0.5  # pixels have their edges in common


def _reason(error: Exception) -> str:
    """OpenCV's own words in one line, cut short; `err` of cv2.error lacks the place in its source."""
    words = str(getattr(error, "err", "") or error).split()
    return " ".join(word for word in words if word != ">")[:NUM_CHARACTERS_SHOWN]  # ">" begins each of its lines
