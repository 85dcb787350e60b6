"""Photographs for tests: drawn faces in larger scenes, and stand-ins for what finds them."""

from pathlib import Path

import numpy as np
from PIL import Image
from scripts import ROOT

from data.alignment.detectors import Detector, FoundFaces
from data.alignment.template import template
from data.synthetic.drawing import draw_face
from data.synthetic.people import random_stream, sample_person, sample_shot

YUNET = ROOT.parent / "shared" / "models" / "face_detection_yunet_2026may.onnx"  # tests skip where it is not
FACE_SIDE = 160  # pixels


class FakeDetector:
    """Stands in for OpenCV's FaceDetectorYN: gives the same faces for every picture, in the scale it was given."""

    def __init__(self, *faces, picture_size):
        self.faces, self.picture_size, self.seen, self.sizes = faces, picture_size, None, []

    def setInputSize(self, size):
        self.sizes.append(size)

    def detect(self, pixels):
        size = self.sizes[-1]
        assert pixels.dtype == np.uint8 and pixels.shape == (size[1], size[0], 3)
        self.seen = pixels
        scale = np.array(size) / self.picture_size
        rows = []
        for points, side in self.faces:
            places = (points + 0.5) * scale - 0.5
            rows.append([0, 0, side, side, *places.ravel(), 0.9])
        return 1, (np.array(rows, np.float32) if rows else None)


class KnownFaces(Detector):
    """Finds what it knows of: by the size of a picture its faces' points and scores."""

    SURE_SCORE = 0.8

    def __init__(self, known: dict[tuple[int, int], list[tuple[np.ndarray, float]]]):
        self.known, self.num_searched = known, 0

    @classmethod
    def open(cls, path):
        raise NotImplementedError

    def find_faces(self, picture: Image.Image) -> FoundFaces:
        self.num_searched += 1
        faces = self.known.get(picture.size, [])
        points = np.array([points for points, _ in faces]).reshape(-1, 5, 2)
        return FoundFaces(points, np.array([score for _, score in faces], np.float64))


def drawn(person: int, age: float, seed: int = 0) -> Image.Image:
    """A drawn face of 160 pixels, exactly aligned."""
    shot = sample_shot(random_stream(seed, person, int(age)), 0.5)
    return Image.fromarray(draw_face(sample_person(5, person), age, shot, FACE_SIDE))


def place(scene: Image.Image, face: Image.Image, centre: tuple[int, int], angle: float = 0.0) -> np.ndarray:
    """Puts a drawn face, turned anticlockwise by `angle` degrees, into the scene; gives its five points (5, 2)."""
    turned = face.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    corner = np.array(centre) - np.array(turned.size) // 2
    scene.paste(turned, tuple(corner.tolist()), turned)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    side = face.size[0]
    points = (template(side) - (side - 1) / 2) @ np.array([[cos, sin], [-sin, cos]]).T
    return points + (np.array(turned.size) - 1) / 2 + corner


def empty_scene(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of coloured patches."""
    patches = np.random.default_rng(seed).integers(60, 200, (6, 8, 3), np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST)


def astronaut() -> Image.Image | None:
    """scikit-image's picture of a real face, 512 x 512; None where it isn't installed with its data."""
    try:
        from skimage.data import astronaut
    except ImportError:
        return None
    return Image.fromarray(astronaut())


def names_below(folder: Path) -> list[str]:
    """Sorted paths of the files below the folder, hidden ones left out."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in paths)
