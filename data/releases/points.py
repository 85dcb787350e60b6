"""Where the five points of a release's pictures come from: its own landmark files, or a table of the user's."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from data.alignment.landmarks import read_point_table, read_pts
from data.finding import find_below
from data.releases.aligned_folders import PointFinder
from meta import UserError


def point_finder(landmarks: Path | None, already_aligned: bool, own: PointFinder | None) -> PointFinder | None:
    """Where the points come from; None for pictures that are aligned already."""
    if landmarks is not None and already_aligned:
        raise UserError("--landmarks and --already-aligned contradict each other: give one of them.")
    if already_aligned:
        return None
    if landmarks is not None:
        return read_point_table(landmarks).find
    if own is None:
        raise UserError("This release has no landmarks of its own: give --landmarks FILE with five points a picture, "
                        "or --already-aligned.")  # fmt: skip
    return own


def landmark_folder(raw: Path, name: str) -> Path:
    folder = find_below(raw, name, directory=True)
    if folder is None:
        raise UserError(f"{str(raw)!r} has no folder {name!r} of landmarks: give the folder of the whole release, or "
                        "--landmarks FILE, or --already-aligned.")  # fmt: skip
    return folder


def points_by_stem(folder: Path, ending: str, read: Callable[[Path], np.ndarray]) -> PointFinder:
    """Landmark files in a folder of their own, found by the picture's name without extension, in any case."""
    files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ending.lower())}

    def find(name: str) -> np.ndarray | None:
        path = files.get(PurePosixPath(name).stem.lower() + ending.lower())
        return None if path is None else read(path)

    return find


def points_beside(pictures: Path) -> PointFinder:
    """Files of 68 points in iBUG's order beside the pictures."""

    def find(name: str) -> np.ndarray | None:
        path = (pictures / name).with_suffix(".pts")
        return read_pts(path, "ibug") if path.is_file() else None

    return find
