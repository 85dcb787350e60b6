"""Faces in photographs, found by a detector that the user brings as an ONNX file: the registry, YuNet, InsightFace's.

A detector is a class with `open(path)` and `find_faces(picture)`, registered under its name; adding one touches this
file alone. Which of them a file is for is found out by trying.
"""

import contextlib
import functools
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from meta import UserError
from utils.wrong_files import wrong_file

TRIAL_PICTURE = Image.new("RGB", (320, 320), (128, 128, 128))  # without a face: what counts is that it can be searched
QUARTER_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
NUM_CHARACTERS_SHOWN = 120  # of OpenCV's own words


class DetectorError(UserError):
    """The detector can't be used at all: a fault of no picture, so no picture is skipped because of it."""


class FoundFaces(NamedTuple):
    """F faces, the one with the largest box first."""

    points: np.ndarray  # (F, 5, 2) float64, pixels, in the order of template.TEMPLATE
    scores: np.ndarray  # (F,) float64, 0 to 1


class Detector(ABC):
    """Finds faces in pictures."""

    SURE_SCORE: ClassVar[float]
    """A face of a lower score counts only where there is none of such a score, and is noted."""

    @classmethod
    @abstractmethod
    def open(cls, path: str) -> "Detector":
        """The detector of this file. Raises DetectorError, in words without the path, for one that is no such model."""

    @abstractmethod
    def find_faces(self, picture: Image.Image) -> FoundFaces:
        """The faces in an RGB picture.

        Raises:
            UserError: this picture can't be searched.
            DetectorError: the model returns something else than such a detector does.
        """

    def refined(self, picture: Image.Image, points: np.ndarray) -> np.ndarray:
        """Better five points (5, 2) of a face that was found in the picture; raises as `find_faces` does."""
        return points


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
        DetectorError: none can use it, with the reasons of all.
    """
    check_file(path)
    reasons = []
    for entry in DETECTORS.values():
        try:
            detector = entry.open(path)
            detector.find_faces(TRIAL_PICTURE)
            return detector
        except UserError as error:
            reasons.append(f"{entry.name}: {str(error).rstrip('.')}")
    raise DetectorError(f"--detector {path} can be used as no detector ({'; '.join(reasons)}): {where_to_get()}.")


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


def _shrunk_blue_first(picture: Image.Image, side: int) -> np.ndarray:
    """uint8 (H, W, 3) with blue first, as OpenCV has it, shrunk to `side` pixels where a side is longer."""
    shrink = min(1.0, side / max(picture.size))
    size = tuple(max(1, round(length * shrink)) for length in picture.size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])


def _cut_out(picture: Image.Image, box: tuple[float, ...], size: int) -> Image.Image:
    """The box (left, top, right, bottom; it may reach beyond the picture, where it is black) in size x size pixels."""
    left, top, right, bottom = box
    whole = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    part = picture.crop(whole)
    inside = (left - whole[0], top - whole[1], right - whole[0], bottom - whole[1])
    return part.resize((size, size), Image.Resampling.BICUBIC, box=inside, reducing_gap=2.0)


def _turned_back(found: FoundFaces, how: Image.Transpose, size: tuple[int, int]) -> FoundFaces:
    """Faces found in a picture of `size` (width, height) that was turned, as they lie in it."""
    x, y = found.points[..., 0], found.points[..., 1]
    width, height = size
    places = {
        Image.Transpose.ROTATE_90: (width - 1 - y, x),
        Image.Transpose.ROTATE_180: (width - 1 - x, height - 1 - y),
        Image.Transpose.ROTATE_270: (y, height - 1 - x),
    }
    return FoundFaces(np.stack(places[how], axis=-1), found.scores)


def _reason(error: Exception) -> str:
    """The library's own words in one line, cut short; `err` of cv2.error lacks the place in its source."""
    words = str(getattr(error, "err", "") or error or type(error).__name__).split()
    return " ".join(word for word in words if word != ">")[:NUM_CHARACTERS_SHOWN]  # ">" begins each line of OpenCV's


# -------------------------------------------------------------------------------------------------------------- YuNet


@register_detector("YuNet", "face_detection_yunet_2023mar.onnx", "https://github.com/opencv/opencv_zoo", needs="OpenCV")
class YuNet(Detector):
    """YuNet, run by OpenCV 4.8 or newer; `face_detection_yunet_2026may.onnx` works too.

    It finds turned faces, but gives them the points of an upright one: of a face turned by 30 degrees some are off by a
    quarter of the eyes' distance. What follows the turn is the score, which is highest for an upright face. So the
    surroundings of a face are turned until it is, and searched again; they have more pixels than the shrunk picture.
    """

    MAX_SIDE = 640  # pixels: what is larger is shrunk, for YuNet was trained on faces of some 10 to 300 pixels
    MIN_SCORE = 0.6  # a face that fills the picture has 0.7
    SURE_SCORE = 0.8
    CROP_SIDE = 160  # pixels: the surroundings of a face, which is some 100 high in them
    CROP_SPREAD = 5.5  # sides of the crop to the points' spread, root mean square from their centre
    TURN_STEP = 30  # degrees
    UPRIGHT_SCORE = 0.92  # most upright faces have some 0.92 to 0.95, few others have
    SCORE_OF_HALF_TURN = 0.01  # what an upside-down face must have more, for few are
    SCORE_SCALE = 0.02  # within which scores are alike

    def __init__(self, detector: Any):
        self._detector = detector  # OpenCV's FaceDetectorYN

    @classmethod
    def open(cls, path: str) -> "YuNet":
        try:
            import cv2
        except ImportError:
            raise DetectorError("OpenCV is not installed, pip install opencv-python-headless") from None
        be_silent(cv2)  # the errors below have sentences of their own
        cv2.setNumThreads(1)  # the processes that search are the threads; and a pool of threads doesn't outlive a fork
        try:
            return cls(cv2.FaceDetectorYN.create(path, "", (cls.MAX_SIDE, cls.MAX_SIDE), cls.MIN_SCORE))
        except cv2.error as error:
            raise DetectorError(f"OpenCV can't read it as an ONNX model, {_reason(error)}") from None

    def find_faces(self, picture: Image.Image) -> FoundFaces:
        """Where no face is sure the picture is searched on its sides and upside down as well."""
        found = self._search(picture)
        if found.scores.max(initial=0) >= self.SURE_SCORE:
            return found
        turned = [_turned_back(self._search(picture.transpose(how)), how, picture.size) for how in QUARTER_TURNS]
        best = max(turned, key=lambda one: one.scores.max(initial=0))
        is_better = not len(found.scores) or best.scores.max(initial=0) >= self.SURE_SCORE
        return best if is_better else found

    def refined(self, picture: Image.Image, points: np.ndarray) -> np.ndarray:
        centre = points.mean(0)
        side = self.CROP_SPREAD * np.sqrt(((points - centre) ** 2).sum(1).mean())  # pixels of the picture
        wide = 1.5 * side  # turned, the crop has its corners in it
        box = (*(centre + 0.5 - wide / 2).tolist(), *(centre + 0.5 + wide / 2).tolist())
        large = round(1.5 * self.CROP_SIDE)
        around = _cut_out(picture, box, large)

        def search(angle: float) -> FoundFaces:
            """`angle` degrees, anticlockwise; in pixels of the crop."""
            margin = (large - self.CROP_SIDE) // 2
            turned = around.rotate(angle, Image.Resampling.BILINEAR)
            return self._search(turned.crop((margin, margin, margin + self.CROP_SIDE, margin + self.CROP_SIDE)))

        turn = self._turn_to_upright(lambda angle: search(angle).scores.max(initial=0))
        found = search(turn).points
        if not len(found):
            return points
        middle = (self.CROP_SIDE - 1) / 2
        offsets = found - middle  # (F, 5, 2) from the centre of the crop
        nearest = offsets[np.linalg.norm(offsets.mean(1), axis=1).argmin()]
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        return nearest @ np.array([[cos, sin], [-sin, cos]]) * (wide / large) + centre

    def _turn_to_upright(self, score_at: Callable[[int], float]) -> float:
        """Degrees, anticlockwise, by which a face has to be turned so that `score_at` is highest."""
        step = self.TURN_STEP

        def score(angle: int) -> float:
            away = abs((angle + 180) % 360 - 180)
            return score_at(angle) - self.SCORE_OF_HALF_TURN * away / 180

        scores = {angle: score(angle) for angle in (-step, 0, step)}
        while (best := max(scores, key=scores.get)) in (min(scores), max(scores)) and len(scores) < 360 / step:
            further = best + (step if best > 0 else -step)
            scores[further] = score(further)
        if scores[best] < self.UPRIGHT_SCORE:  # the summit of a lower hill, such as a face upside down has
            first = min(scores)
            scores |= {angle: score(angle) for angle in range(first, first + 360, step) if angle not in scores}
            best = max(scores, key=scores.get)
        angles = (np.array(list(scores)) - best + 180) % 360 - 180  # from the best one
        weights = np.exp((np.array(list(scores.values())) - scores[best]) / self.SCORE_SCALE)
        weights *= abs(angles) <= 2 * step
        return (best + float((weights * angles).sum() / weights.sum()) + 180) % 360 - 180

    def _search(self, picture: Image.Image) -> FoundFaces:
        pixels = _shrunk_blue_first(picture, self.MAX_SIDE)
        size = (pixels.shape[1], pixels.shape[0])
        try:
            self._detector.setInputSize(size)
            _, rows = self._detector.detect(pixels)
        except MemoryError:
            raise
        except Exception as error:  # cv2.error, which only OpenCV itself could name
            raise UserError(f"OpenCV can't search {size[0]} x {size[1]} pixels with it ({_reason(error)})") from None
        if rows is None:
            rows = np.zeros((0, 15))
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != 15:
            raise DetectorError(f"the detector gives an array {rows.shape}, where YuNet gives 15 numbers a face")
        # x, y, width, height, then the points, then the score. YuNet's "right eye" is the person's, at image left.
        rows = rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]
        scale = np.array(picture.size) / size
        points = (rows[:, 4:14].reshape(-1, 5, 2) + 0.5) * scale - 0.5  # pixels have their edges in common
        return FoundFaces(points, rows[:, 14])


# -------------------------------------------------------------------------------------------------- SCRFD, RetinaFace


@register_detector(
    "InsightFace", "det_10g.onnx", "the insightface package's buffalo_l", needs="the packages insightface, onnxruntime"
)
class InsightFace(Detector):
    """SCRFD and RetinaFace in InsightFace's ONNX files, run by the insightface package on the CPU.

    The points are not moved by half a pixel for the shrinking: InsightFace aligns by them as they are.
    """

    SIDE = 640  # pixels: the package scales pictures to fit, larger or smaller
    SURE_SCORE = 0.6  # the package leaves out what has less than 0.5

    def __init__(self, model: Any):
        self._model = model  # SCRFD or RetinaFace of insightface.model_zoo

    @classmethod
    def open(cls, path: str) -> "InsightFace":
        try:
            from insightface.model_zoo import get_model
        except ImportError:
            raise DetectorError("insightface is not installed, pip install insightface onnxruntime") from None
        if not path.endswith(".onnx"):  # the package would look for a model of this name
            raise DetectorError("insightface reads files that end in .onnx")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the package prints what it loads
                model = get_model(path)
                if not hasattr(model, "detect"):
                    raise DetectorError(f"insightface takes it for another network ({type(model).__name__})")
                # A size is given where the file has none of its own; 0 and more would be a GPU.
                model.prepare(-1, **({} if getattr(model, "input_size", None) else {"input_size": (cls.SIDE,) * 2}))
        except (DetectorError, MemoryError):
            raise
        except Exception as error:  # onnxruntime's, and assertions
            raise DetectorError(f"insightface can't read it, {_reason(error)}") from None
        return cls(model)

    def find_faces(self, picture: Image.Image) -> FoundFaces:
        try:
            boxes, points = self._model.detect(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))  # blue first
        except MemoryError:
            raise
        except Exception as error:
            width, height = picture.size
            raise UserError(f"insightface can't search {width} x {height} pixels with it ({_reason(error)})") from None
        if points is None:
            raise DetectorError("the detector finds faces without their five points: take one whose name has kps")
        boxes, points = np.asarray(boxes, np.float64), np.asarray(points, np.float64)
        if boxes.shape != (len(boxes), 5) or points.shape != (len(boxes), 5, 2):
            raise DetectorError(f"the detector gives arrays {boxes.shape} and {points.shape}, not 5 points a face")
        # left, top, right, bottom, score
        order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
        return FoundFaces(points[order], boxes[order, 4])
