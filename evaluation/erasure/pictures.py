"""The pictures that an erasure is fitted to, with the ages that are known of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.ages.tables import Columns, read_ages
from data.faces import UNKNOWN, Faces, index_pictures
from data.filenames import find_age, parse_age
from data.index_cache import find_record_file, open_index
from data.layout import is_image_name
from meta import FILENAME_PATTERNS, FilenamePattern, UserError
from utils.files import Progress, no_progress


@dataclass(frozen=True, eq=False)
class AgedPictures:
    """Pictures, and whole years (N,), -1 where unknown; None where none is known."""

    faces: Faces
    ages: np.ndarray | None
    ages_from: str  # where they come from, in words; empty without
    has_people: bool  # whether it is known who is on them


def open_aged_pictures(
    data: Path,
    names: str | None = None,
    table: Path | None = None,
    *,
    columns: Columns | None = None,
    cache_folder: Path | None = None,
    report: Callable[[str], None] = print,
    progress: Progress = no_progress,
) -> AgedPictures:
    """The pictures of a record file, of a folder with one folder a person, or directly in a folder or deeper.

    Ages come from `table` (from its `columns`, where they are named), else from the labels of the record file, or from
    the file names: by the pattern `names`, or without it by the one that fits every name. A name that holds none by
    `names` has the age -1.

    Raises:
        UserError: no pictures, no name with an age by the pattern asked for, a table that lacks some, or names that
            several patterns fit.
    """
    records = find_record_file(data)
    if records is not None and names is not None:
        raise UserError(f"--names does nothing with the record file {records!r}, whose pictures have no names: leave "
                        f"it out.")  # fmt: skip
    loose = os.listdir(data) if records is None and os.path.isdir(data) else []
    is_flat = any(is_image_name(name) and not name.startswith(".") for name in loose)
    if is_flat:
        faces: Faces = index_pictures(data, "pictures")
    else:
        faces = open_index(data, None, what="pictures", cache_folder=cache_folder, report=report, progress=progress)
    if table is not None:
        ages, ages_from = read_ages(table, faces, progress, columns), f"the table {table}"
    else:
        ages, ages_from = _known_ages(faces, names, records is not None)
    if ages is None or (ages == UNKNOWN).all():
        ages, ages_from = None, ""
    return AgedPictures(faces, ages, ages_from, not is_flat)


def _known_ages(faces: Faces, names: str | None, is_record_file: bool) -> tuple[np.ndarray | None, str]:
    """Whole years (N,) and where they come from."""
    if is_record_file:
        return faces.ages, "the labels of the record file"
    if names is not None:
        pattern = FILENAME_PATTERNS.get(names)  # None for "none"
        if pattern is None:
            return None, ""
        ages = _ages_of_names(faces, pattern)
        if (ages == UNKNOWN).all():
            parse_age(faces.name(0), pattern)  # raises
        return ages, f"the file names ({names})"
    fitting = {name: ages for name, pattern in FILENAME_PATTERNS.items()
               if (ages := _ages_of_names(faces, pattern)).min() != UNKNOWN}  # fmt: skip
    if len(fitting) > 1:
        listed = " or ".join(f"--names {name}" for name in fitting)
        raise UserError(f"names such as {faces.name(0)!r} in {faces.root!r} hold an age in more than one way: give "
                        f"{listed}.")  # fmt: skip
    return next(((ages, f"the file names ({name})") for name, ages in fitting.items()), (None, ""))


def _ages_of_names(faces: Faces, pattern: FilenamePattern) -> np.ndarray:
    """(N,), -1 where a name holds none."""
    found = (find_age(faces.name(i), pattern) for i in range(len(faces)))
    return np.fromiter((UNKNOWN if age is None else age for age in found), np.int16, len(faces))


def choose(pictures: AgedPictures, max_images: int | None, seed: int) -> np.ndarray:
    """Positions of the pictures to take: all whose age is known or will be estimated, or a sample of these.

    A larger sample of the same seed holds the smaller one, in its order.
    """
    ages = pictures.ages
    usable = np.arange(len(pictures.faces)) if ages is None else np.flatnonzero(ages != UNKNOWN)
    if max_images is None or max_images >= len(usable):
        return usable
    return np.random.default_rng(seed).permutation(usable)[:max_images]


def check_enough(pictures: AgedPictures, chosen: np.ndarray, size: int, max_images: int | None = None) -> None:
    """Raises UserError for fewer pictures than `size`, the numbers in a feature, or ages that are all one."""
    of_age = "" if pictures.ages is None else " whose age is known"
    if max_images is not None and max_images < size:
        raise UserError(f"a sample of {max_images} pictures is smaller than the {size} numbers in a feature: take "
                        f"{size} or more.")  # fmt: skip
    if len(chosen) < size:
        raise UserError(f"there are {len(chosen):,} pictures{of_age} in {pictures.faces.root!r}, fewer than the {size} "
                        f"numbers in a feature: give more.")  # fmt: skip
    if pictures.ages is not None and len(np.unique(pictures.ages[chosen])) == 1:
        age = pictures.ages[chosen[0]]
        raise UserError(f"all {len(chosen):,} pictures in {pictures.faces.root!r} are of the age {age} by "
                        f"{pictures.ages_from}: give people of several ages.")  # fmt: skip
