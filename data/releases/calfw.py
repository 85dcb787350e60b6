"""CALFW as released -> its pictures and its pair list, divided into ten folds."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.alignment.landmarks import read_five_lines
from data.finding import find_below
from data.pairs import NUM_FOLDS, Pair
from data.releases.aligned_folders import Plan
from data.releases.flags import Align
from data.releases.names import is_inner_path, unexpected_line
from data.releases.pair_sets import add_pairs, benchmark_places
from data.releases.points import landmark_folder, point_finder, points_by_stem
from meta import BENCHMARKS, UserError
from utils.cli import input_file
from utils.files import numbered_lines

EXPECTED_CALFW = (
    "a pair is two lines 'Name_0001.jpg tag', the tag 1 to 10 for the same person (the fold) or 0 for two people"
)


def plan_calfw(
    raw: Path, landmarks: Path | None = None, already_aligned: bool = False, pairs: Path | None = None
) -> Plan:
    """CALFW: images/Name_0001.jpg with CA_landmarks/Name_0001_5loc_attri.txt -> CALFW/processed_CALFW_2 and its list.

    The pictures of the official list `pairs_CALFW.txt` (or `pairs`) are taken, no others.
    """
    benchmark = BENCHMARKS["calfw"]
    pairs = pairs or find_below(raw, "pairs_CALFW.txt", directory=False)
    if pairs is None:
        raise UserError(f"{str(raw)!r} has no file 'pairs_CALFW.txt': give the folder of the release, or --pairs FILE.")
    plan = Plan(benchmark.title, benchmark.unpacked_into, False, [raw, landmarks, pairs])
    own, pictures = None, None
    if landmarks is None and not already_aligned:
        points = landmark_folder(raw, "CA_landmarks")
        own = points_by_stem(points, "_5loc_attri.txt", read_five_lines)
        # The release has "aligned images" too, aligned in another way; the landmarks are of those beside them.
        pictures = find_below(points.parent, "images", directory=True)
    pictures = pictures or find_below(raw, "images", directory=True) or raw
    find_points = point_finder(landmarks, already_aligned, own)
    add_pairs(plan, pictures, read_calfw_pairs(pairs), *benchmark_places(benchmark), find_points)
    return plan


def read_calfw_pairs(path: str | Path) -> list[Pair]:
    """CALFW's official list, divided into ten folds: each its genuine, then its impostor pairs.

    A genuine pair has its fold in the list; the impostors have none and are distributed in their order, as many to each
    fold as it has genuine pairs. The official list has 6,000 pairs; a shorter one may have any multiple of 20.

    Raises:
        UserError: for a list that can't be read, isn't of this form, or can't be divided so.
    """
    lines = [_calfw_line(number, line, path) for number, line in numbered_lines(path, "pair list", EXPECTED_CALFW)]
    shown = repr(str(path))
    if len(lines) % 2:
        raise UserError(f"The pair list {shown} has {len(lines)} lines, an odd number: {EXPECTED_CALFW}.")
    folds: list[list[Pair]] = [[] for _ in range(NUM_FOLDS)]
    impostors: list[Pair] = []
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        genuine = first.tag > 0
        same_name = first.name.rpartition("_")[0] == second.name.rpartition("_")[0]
        if first.tag != second.tag or genuine != same_name:
            raise UserError(
                f"{shown}, lines {first.number} and {second.number}, are {first.name!r} with tag {first.tag} and "
                f"{second.name!r} with tag {second.tag}, which contradict each other: {EXPECTED_CALFW}."
            )
        (folds[first.tag - 1] if genuine else impostors).append(Pair(first.name, second.name, genuine))
    sizes = sorted({len(fold) for fold in folds})
    if len(sizes) > 1 or not sizes[0] or len(impostors) != NUM_FOLDS * sizes[0]:
        raise UserError(
            f"The pair list {shown} has {sizes[0]} to {sizes[-1]} genuine pairs in a fold and {len(impostors)} "
            "impostor pairs in all: ten folds with as many of either kind are needed; get the list again."
        )
    half = sizes[0]
    return [pair for k, fold in enumerate(folds) for pair in (*fold, *impostors[half * k : half * (k + 1)])]


class _CalfwLine(NamedTuple):
    number: int
    name: str
    tag: int


def _calfw_line(number: int, line: str, path: str | Path) -> _CalfwLine:
    fields = line.split()
    if len(fields) != 2 or fields[1] not in [str(tag) for tag in range(NUM_FOLDS + 1)] or not is_inner_path(fields[0]):
        raise unexpected_line(f"{str(path)!r}, line {number}", line, EXPECTED_CALFW)
    return _CalfwLine(number, fields[0].removeprefix("./"), int(fields[1]))


@dataclass(frozen=True)
class AlignCalfw(Align):
    """CALFW as released (images, CA_landmarks, pairs_CALFW.txt) -> CALFW, its list divided into ten folds."""

    pairs: Path | None = input_file()
    """Its pair list, where it does not lie in the release's folder."""

    def plans(self) -> list[Plan]:
        return [plan_calfw(self.raw, self.landmarks, self.already_aligned, self.pairs)]
