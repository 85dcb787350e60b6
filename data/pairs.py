"""Lists of image pairs for verification: is it the same person in both?"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.faces import FaceIndex, index_names, is_image_name
from data.layout import no_such_folder
from meta import BENCHMARKS, IMAGE_EXTENSIONS, Benchmark, UserError
from utils.files import numbered_lines, written_beside

NUM_FOLDS = 10  # of the protocol for pairs
NUM_NAMES_SHOWN = 3  # of missing images, in a message
NUM_CHARACTERS_SHOWN = 80  # of a malformed line or a missing image
EXPECTED = "one 'name_a name_b 1|0' per line is expected"


class Pair(NamedTuple):
    name_a: str
    name_b: str
    genuine: bool


@dataclass(frozen=True, eq=False)
class PairList:
    """P pairs of U different images, in the order of the list; an image of many pairs stands in `images` once."""

    images: FaceIndex
    first: np.ndarray  # (P,) int64, positions in images
    second: np.ndarray  # (P,) int64
    genuine: np.ndarray  # (P,) bool
    missing: tuple[str, ...]  # names in the list without a file
    num_pairs_dropped: int  # because of them

    def __len__(self) -> int:
        return len(self.genuine)


def find_pair_list(root: str | Path, benchmark: Benchmark) -> Path | None:
    """The first of the benchmark's published places below `root` (face_dataset) that holds its list, or None."""
    paths = (Path(root) / place for place in benchmark.pair_lists)
    return next((path for path in paths if path.is_file()), None)


def read_pair_list(list_path: str | Path, images_folder: str | Path, allow_missing: bool = False) -> PairList:
    """Pairs of a text file with `name_a name_b 1|0` per line, 1 for the same person; blank lines are skipped.

    With `allow_missing` pairs without both images are dropped and counted; the others keep their order.

    Raises:
        UserError: for a missing or empty list, a malformed line, a missing folder or missing images.
    """
    pairs = [
        _parse_line(line, f"{str(list_path)!r}, line {number}")
        for number, line in numbered_lines(list_path, "pair list", EXPECTED)
    ]
    if not pairs:
        raise UserError(f"The pair list {str(list_path)!r} holds no pairs: {EXPECTED}.")
    return locate_pairs(pairs, images_folder, allow_missing)


def read_answers(list_path: str | Path) -> np.ndarray:
    """bool (P,), of all pairs of a list that `read_pair_list` has read: of those without images too."""
    lines = numbered_lines(list_path, "pair list", EXPECTED)
    return np.array([line.split()[2] == "1" for _, line in lines], dtype=bool)


def fold_counts(genuine: np.ndarray) -> list[tuple[int, int]]:
    """Genuine and impostor pairs of each of the ten folds, equal parts of the list in its order, of bool (P,)."""
    folds = np.array_split(genuine, NUM_FOLDS)  # as the protocol: where ten does not divide, the first are one longer
    return [(int(fold.sum()), int((~fold).sum())) for fold in folds]


def check_folds(genuine: np.ndarray, list_path: str | Path) -> None:
    """Raises UserError for a fold without genuine or without impostor pairs: it says nothing of errors of that kind."""
    one_class = [
        f"fold {number}: {same:,} genuine, {other:,} impostor"
        for number, (same, other) in enumerate(fold_counts(genuine), 1)
        if not (same and other)
    ]
    if one_class:
        shown = "; ".join(one_class[:NUM_NAMES_SHOWN]) + ("; ..." if len(one_class) > NUM_NAMES_SHOWN else "")
        raise UserError(
            f"{str(list_path)!r} lacks one kind of pairs in {len(one_class)} of the ten folds ({shown}): folds are "
            "tenths of the list in its order, order the pairs so that each has both kinds."
        )


def make_pairs(benchmark: Benchmark, images_folder: str | Path, allow_missing: bool = False) -> PairList:
    """The pairs of a benchmark by its rule, without a list file; images may have any extension in any case.

    Raises:
        UserError: for a missing folder or missing images.
    """
    names_by_stem = _image_names_by_stem(checked_folder(images_folder))
    pairs = [
        Pair(*(names_by_stem.get(Path(name).stem, name) for name in pair[:2]), pair.genuine)
        for pair in pairs_by_rule(benchmark)
    ]
    return locate_pairs(pairs, images_folder, allow_missing)


def pairs_by_rule(benchmark: Benchmark) -> list[Pair]:
    return [Pair(*pair) for pair in benchmark.pair_rule()]


def write_cacd_vs_list(path: str | Path) -> None:
    """Writes the list file of CACD-VS, 4,000 lines; a file of that name is replaced at once or not at all."""
    with written_beside(path, "w", encoding="ascii") as file:
        file.writelines(f"{a} {b} {int(genuine)}\n" for a, b, genuine in pairs_by_rule(BENCHMARKS["cacd_vs"]))


def _image_names_by_stem(folder: str) -> dict[str, str]:
    """Image names in `folder` by their stem; of several with one stem the extension that meta.py lists first wins."""
    names = [name for name in os.listdir(folder) if is_image_name(name)]
    names.sort(key=lambda name: (IMAGE_EXTENSIONS.index(Path(name).suffix.lower()), name), reverse=True)
    return {Path(name).stem: name for name in names}  # a later name replaces an earlier one


def _parse_line(line: str, where: str) -> Pair:
    fields = line.split()
    if len(fields) != 3 or fields[2] not in ("0", "1"):
        shown = line.strip()[:NUM_CHARACTERS_SHOWN]
        raise UserError(
            f"{where}, reads {shown!r}: 'name_a name_b 1' (same person) or 'name_a name_b 0' is expected, "
            "names without spaces in them."
        )
    return Pair(*(checked_name(name, f"{where},") for name in fields[:2]), genuine=fields[2] == "1")


def checked_name(name: str, where: str) -> str:
    """The name of a picture, normalised: ./a.jpg and a.jpg are one. Raises UserError for one outside of its folder."""
    name = os.path.normpath(name)
    if os.path.isabs(name) or name.split(os.sep)[0] == os.pardir or "\0" in name:
        raise UserError(
            f"{where} names {name[:NUM_CHARACTERS_SHOWN]!r} outside the folder of images: "
            "give names relative to that folder."
        )
    return name


def checked_folder(images_folder: str | Path) -> str:
    if not os.path.isdir(images_folder):
        raise UserError(no_such_folder(images_folder, "images", "make it or give another one"))
    return str(images_folder)


def locate_pairs(pairs: Sequence[Pair], images_folder: str | Path, allow_missing: bool) -> PairList:
    """Splits pairs into those with both images and those without."""
    folder = checked_folder(images_folder)
    names = dict.fromkeys(name for pair in pairs for name in pair[:2])  # a set that keeps the order
    missing = {name: None for name in names if not os.path.isfile(os.path.join(folder, name))}
    kept = [pair for pair in pairs if pair.name_a not in missing and pair.name_b not in missing]
    if missing and not allow_missing:
        shown = ", ".join(repr(name[:NUM_CHARACTERS_SHOWN]) for name in list(missing)[:NUM_NAMES_SHOWN])
        shown += ", ..." if len(missing) > NUM_NAMES_SHOWN else ""
        raise UserError(
            f"The folder {folder!r} lacks {len(missing)} of the {len(names)} images in the pair list ({shown}): "
            f"add them, or give --allow-missing to leave out the {len(pairs) - len(kept)} pairs that need them."
        )
    if not kept:
        raise UserError(
            f"The folder {folder!r} has both images of none of the {len(pairs)} pairs: give another folder."
        )
    positions: dict[str, int] = {}
    for pair in kept:
        for name in pair[:2]:
            positions.setdefault(name, len(positions))
    return PairList(
        images=index_names(folder, positions),
        first=np.array([positions[pair.name_a] for pair in kept], dtype=np.int64),
        second=np.array([positions[pair.name_b] for pair in kept], dtype=np.int64),
        genuine=np.array([pair.genuine for pair in kept], dtype=bool),
        missing=tuple(missing),
        num_pairs_dropped=len(pairs) - len(kept),
    )
