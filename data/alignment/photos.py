"""Pictures of the user's own, brought to the aligned 112x112 that the networks take, or refused with a reason.

A picture of 112x112 is taken for aligned, as those of the benchmarks are. Any other needs its five points, from a file
of landmarks or from a detector: a network that is shown an unaligned face gives an embedding all the same, and a wrong
answer.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.alignment import detectors as detection
from data.alignment.choice import FaceChoice, Note, choose_face, notes_on
from data.alignment.landmarks import PointTable
from data.alignment.template import TEMPLATE, align
from data.faces import index_pictures
from data.layout import is_photo_name, packed
from data.transforms import Photograph, decode_photograph, orientation
from meta import IMAGE_SIZE, UserError
from utils.worker_processes import started
from utils.wrong_files import wrong_file

Source: TypeAlias = str | Path | Image.Image
# Pixels, root mean square over the five points. YuNet is up to 10 off on 200 drawn faces that are aligned exactly.
MAX_MISALIGNMENT = 12.0


class AlignedPicture(NamedTuple):
    picture: Image.Image  # RGB, size x size
    aligned_by: str  # "as given", "landmarks", "detector" or "assumed"
    notes: tuple[Note, ...] = ()  # on what had to be decided, or is unusual
    is_unchanged: bool = False  # the pixels of the file, neither turned nor resized


class AlignedFace(NamedTuple):
    pixels: Tensor  # (3, 112, 112) uint8
    aligned_by: str
    notes: tuple[str, ...] = ()  # sentences


@dataclass(frozen=True)
class Aligner:
    """How pictures come to be aligned. Without anything only those of 112x112 are taken."""

    landmarks: PointTable | None = None
    """Five points a picture; they are asked first."""
    detector_path: str | None = None
    """ONNX file of a detector, for pictures without landmarks: those of 112x112 are checked, others aligned."""
    assume_aligned: bool = False
    """Every picture is aligned, whatever its size; it is only resized."""
    face_choice: FaceChoice = "largest"
    """Which face, where the detector finds several."""

    def face(self, source: Source, name: str) -> AlignedFace:
        """The aligned face of one picture for a network; raises as `aligned` does."""
        points = None if self.landmarks is None else self.landmarks.find(name)
        found = self.aligned(source, name, points)
        return AlignedFace(to_pixels(found.picture), found.aligned_by, tuple(note.sentence for note in found.notes))

    def aligned(self, source: Source, name: str, points: np.ndarray | None, size: int = IMAGE_SIZE) -> AlignedPicture:
        """The aligned face of one picture, `size` pixels a side, by five points (5, 2) where they are known.

        Raises:
            UserError: for a picture that can't be decoded, has no face, or has to be aligned and can't be.
            DetectorError: the detector is at fault and no picture.
        """
        if isinstance(source, Image.Image):
            photo = Photograph(source.convert("RGB"), orientation(source))
        else:
            photo = decode_photograph(source, name)
        # The published loader does not turn pictures by EXIF, and landmark files are of pictures as they are stored.
        picture = photo.picture
        if points is not None:
            return _warped(picture, points, size, name, "landmarks")
        if picture.size == (IMAGE_SIZE, IMAGE_SIZE):
            is_checked = self.detector_path is not None and not self.assume_aligned
            notes = self._misalignment(picture, name) if is_checked else ()
            return _as_it_is(picture, size, "as given", notes)
        if self.assume_aligned:
            return _as_it_is(picture, size, "assumed")
        if self.detector_path is not None:
            return self._detected(photo.upright(), size, name)
        where = "" if self.landmarks is None else f"{self.landmarks.source} has no points for it; "
        raise UserError(
            f"{name!r} has {picture.size[0]} x {picture.size[1]} pixels, and only those of {IMAGE_SIZE} x {IMAGE_SIZE} "
            f"are taken for aligned: {where}give --detector (an ONNX file) or --landmarks to align it, or "
            "--assume-aligned if it is aligned and only larger."
        )

    def _detected(self, picture: Image.Image, size: int, name: str) -> AlignedPicture:
        with _searching(name):
            detector = detection.open_detector(self.detector_path)
            found = detector.find_faces(picture)
        points, notes = choose_face(found, self.face_choice, detector.SURE_SCORE, picture.size, name)
        with _searching(name):
            points = detector.refined(picture, points)
        return _warped(picture, points, size, name, "detector", notes)

    def _misalignment(self, picture: Image.Image, name: str) -> tuple[Note, ...]:
        """A note where none of the faces found in a 112x112 picture lies on the template."""
        with _searching(name):
            detector = detection.open_detector(self.detector_path)
            faces = detector.find_faces(picture).points
            found = "no face at all"
            if len(faces):
                nearest = faces[_distances(faces).argmin()]
                distance = _distances(detector.refined(picture, nearest))
                if distance <= MAX_MISALIGNMENT:
                    return ()
                found = f"{distance:.0f} pixels beside the places of an aligned face"
        what = f"{name!r} is {IMAGE_SIZE}x{IMAGE_SIZE} and taken as it is, but the detector finds {found}"
        return (Note("unaligned", f"{what}: unless it is aligned, align it from the photograph"),)


@contextlib.contextmanager
def _searching(name: str) -> Iterator[None]:
    """Gives a picture that can't be searched its name."""
    try:
        yield
    except detection.DetectorError:
        raise
    except UserError as error:
        raise UserError(f"no face can be looked for in {name!r}, {error}: give its five points by --landmarks, or "
                        "leave it out.") from None  # fmt: skip


def _distances(points: np.ndarray) -> np.ndarray:
    """From the template, root mean square over five points (..., 5, 2), in pixels."""
    return np.sqrt(((points - TEMPLATE) ** 2).sum(axis=-1).mean(axis=-1))


def _warped(
    picture: Image.Image, points: np.ndarray, size: int, name: str, aligned_by: str, notes: tuple[Note, ...] = ()
) -> AlignedPicture:
    try:
        notes += notes_on(points, picture.size, name)
        return AlignedPicture(align(picture, points, size), aligned_by, notes)
    except UserError as error:
        reason = str(error)
        raise UserError(f"{name!r} can't be aligned: {reason[0].lower()}{reason[1:]}") from None


def _as_it_is(picture: Image.Image, size: int, aligned_by: str, notes: tuple[Note, ...] = ()) -> AlignedPicture:
    """The picture, resized as `data.transforms.decode_face` does it."""
    if picture.size == (size, size):
        return AlignedPicture(picture, aligned_by, notes, is_unchanged=True)
    return AlignedPicture(picture.resize((size, size), Image.Resampling.BICUBIC), aligned_by, notes)


def to_pixels(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


# ----------------------------------------------------------------------------------------------------- many pictures


class NamedSources(NamedTuple):
    """Pictures to embed: where each is, and its name in messages and files, each once."""

    sources: tuple[Source, ...]
    names: tuple[str, ...]


def list_pictures(paths: Sequence[Path]) -> NamedSources:
    """All pictures below the folders and the files among `paths`, in their order.

    Of one folder the names are relative to it, else they begin as `paths` do.

    Raises:
        UserError: for a path that is not there, a folder without pictures, and a picture that is there twice.
    """
    sources, names = [], []
    for path in paths:
        if path.is_dir():
            index = index_pictures(path, is_wanted=is_photo_name)
            sources += [Path(index.path(i)) for i in range(len(index))]
            above = "" if len(paths) == 1 else f"{path.as_posix()}/"
            names += [above + index.key(i) for i in range(len(index))]
        elif path.exists():
            if not is_photo_name(path.name) and (wrong := wrong_file(path, "picture", ("picture",))):
                raise UserError(f"{str(path)!r} {wrong[0]}: {wrong[1]}.")
            sources.append(path)
            names.append(path.as_posix())
        elif archive := packed(path):
            raise UserError(f"{str(path)!r} does not exist, but its archive {archive!r} does: unpack it.")
        else:
            raise UserError(f"{str(path)!r} does not exist: give pictures or folders of pictures.")
    seen: dict[str, str] = {}
    for source, name in zip(sources, names, strict=True):
        place = os.path.realpath(source)
        if place in seen:
            raise UserError(f"{name!r} and {seen[place]!r} are the same file: give each picture once.")
        seen[place] = name
    return NamedSources(tuple(sources), tuple(names))


class Piece(NamedTuple):
    """Some of the pictures; a black one stands for each that failed."""

    images: Tensor  # (B, 3, 112, 112) uint8
    indices: Tensor  # (B,) int64
    aligned_by: tuple[str, ...]
    notes: tuple[str, ...]
    failures: dict[int, str]  # index -> why there is no face
    detector_failure: str = ""  # why there is none in any picture; words, for an exception of a worker loses its own


class _AlignedFaces(Dataset):
    def __init__(self, pictures: NamedSources, aligner: Aligner):
        self.pictures, self.aligner = pictures, aligner

    def __len__(self) -> int:
        return len(self.pictures.names)

    def __getitem__(self, i: int) -> "_Item":
        try:
            face = self.aligner.face(self.pictures.sources[i], self.pictures.names[i])
        except detection.DetectorError as error:
            return _Item(i, None, str(error), is_detectors=True)
        except UserError as error:
            return _Item(i, None, str(error))
        return _Item(i, face, "")


class _Item(NamedTuple):
    index: int
    face: AlignedFace | None
    failure: str
    is_detectors: bool = False  # the failure


def _collate(items: list[_Item]) -> Piece:
    black = AlignedFace(torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8), "")
    faces = [item.face or black for item in items]
    return Piece(
        torch.stack([face.pixels for face in faces]),
        torch.tensor([item.index for item in items]),
        tuple(face.aligned_by for face in faces if face is not black),
        tuple(note for face in faces for note in face.notes),
        {item.index: item.failure for item in items if item.face is None},
        next((item.failure for item in items if item.is_detectors), ""),
    )


def load_pieces(pictures: NamedSources, aligner: Aligner, batch_size: int = 64, workers: int = 0) -> Iterator[Piece]:
    """All pictures in their order, `batch_size` at a time, read and aligned by so many processes (0: this one)."""
    workers = 0 if len(pictures.names) <= batch_size else workers  # to start one takes longer than some pictures
    faces = _AlignedFaces(pictures, aligner)
    loader = DataLoader(faces, batch_size, num_workers=workers, collate_fn=_collate, generator=torch.Generator())
    yield from started(loader)
