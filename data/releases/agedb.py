"""AgeDB as released -> the pictures and pairs of its 30-year protocol, a training set, or both."""

import re
from dataclasses import dataclass
from pathlib import Path

from data.finding import find_below
from data.pairs import NUM_FOLDS, Pair
from data.releases.aligned_folders import Plan
from data.releases.flags import Align, check_folder_name
from data.releases.mat import MatArray, read_mat_variable
from data.releases.names import is_inner_path, is_plain_name, unexpected_line
from data.releases.pair_sets import add_pairs
from data.releases.points import point_finder, points_beside
from data.releases.training_sets import add_training_set
from meta import UserError
from utils.cli import input_file
from utils.files import numbered_lines

AGEDB_NAME = re.compile(r"\d+_(?P<person>.+)_(?P<age>\d{1,3})_[mf]\.jpe?g", re.IGNORECASE | re.ASCII)
# AgeDB is none of the paper's benchmarks, so no place is published; this one is like CALFW's.
AGEDB_FOLDER = "AgeDB"
AGEDB_PICTURES = "processed_AgeDB"
AGEDB_LIST = "txts/AgeDB_30_img_pairs_labels.txt"
EXPECTED_PAIR = "one 'name_a name_b 1|0' per line is expected, names or paths without spaces below the pictures' folder"
EXPECTED_MAT = "'splits' with ten cells of names and labels is expected, as in 04_FINAL_protocol_30_years.mat"


def plan_agedb(
    raw: Path,
    landmarks: Path | None = None,
    already_aligned: bool = False,
    pairs: Path | None = None,
    training_folder: str = "",
) -> list[Plan]:
    """AgeDB: 0_MariaCallas_35_f.jpg with 0_MariaCallas_35_f.pts -> AgeDB/ for the 30-year protocol, or a training set.

    `pairs` is the protocol, 04_FINAL_protocol_30_years.mat (found by itself below `raw`) or a text file of
    `name_a name_b 1|0` per line.
    """
    pairs = pairs or find_below(raw, "04_FINAL_protocol_30_years.mat", directory=False)
    if pairs is None and not training_folder:
        raise UserError(f"{str(raw)!r} has no file '04_FINAL_protocol_30_years.mat': give --pairs FILE for the 30-year "
                        "protocol, or --training-folder NAME for a training set.")  # fmt: skip
    pictures = find_below(raw, "03_Protocol_Images", directory=True) or raw
    own = None if landmarks or already_aligned else points_beside(pictures)
    find_points = point_finder(landmarks, already_aligned, own)
    inputs, plans = [raw, landmarks, pairs], []
    if pairs is not None:
        plan = Plan("AgeDB, 30 years", AGEDB_FOLDER, False, inputs)
        add_pairs(plan, pictures, read_agedb_pairs(pairs), AGEDB_PICTURES, AGEDB_LIST, find_points)
        plans.append(plan)
    if training_folder:
        plan = Plan("AgeDB for training", training_folder, True, inputs)
        add_training_set(plan, pictures, AGEDB_NAME, "0_MariaCallas_35_f.jpg", find_points)
        plans.append(plan)
    if len(plans) == 2:
        plans[1].notes.append("it has the people of AgeDB's protocol: a model trained on it can't be tested there")
    return plans


def read_agedb_pairs(path: str | Path) -> list[Pair]:
    """AgeDB's protocol: ten folds of equal size in their order, half of each fold genuine.

    Either the official `04_FINAL_protocol_30_years.mat` (whose names have no extension) or a text file of
    `name_a name_b 1|0` per line, where a name may have folders before it.

    Raises:
        UserError: for a list that can't be read, isn't of its form, or has no such folds.
    """
    pairs = _read_mat(Path(path)) if Path(path).suffix.lower() == ".mat" else _read_general(path)
    size = len(pairs) // NUM_FOLDS
    numbers = [sum(pair.genuine for pair in pairs[size * k : size * (k + 1)]) for k in range(NUM_FOLDS)]
    if not pairs or len(pairs) % (2 * NUM_FOLDS) or any(2 * number != size for number in numbers):
        raise UserError(
            f"The pair list {str(path)!r} has {len(pairs)} pairs, in tenths of which {numbers} are genuine: "
            "ten folds one after the other, half of each genuine, are needed."
        )
    return pairs


def _read_general(path: str | Path) -> list[Pair]:
    pairs = []
    for number, line in numbered_lines(path, "pair list", EXPECTED_PAIR):
        fields = line.split()
        if len(fields) != 3 or fields[2] not in ("0", "1") or not all(map(is_inner_path, fields[:2])):
            raise unexpected_line(f"{str(path)!r}, line {number}", line, EXPECTED_PAIR)
        pairs.append(Pair(*(field.removeprefix("./") for field in fields[:2]), fields[2] == "1"))
    return pairs


def _read_mat(path: Path) -> list[Pair]:
    """`splits`: ten cells, each a struct of a cell array (2, P) of structs whose first field is a name, and of P labels
    1 or -1. Source: how others read it; the file itself goes with the data set.
    """
    try:
        return [pair for split in read_mat_variable(path, "splits").values for pair in _mat_fold(split)]
    # A cell where a struct was to come, and the like
    except (OSError, ValueError, AttributeError, IndexError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or (str(error) if isinstance(error, ValueError) else "other content")
        raise UserError(f"The protocol {str(path)!r} cannot be read, {reason!r}: {EXPECTED_MAT}.") from error


def _mat_fold(split: MatArray) -> list[Pair]:
    names, labels = list(split.values[0].values())[:2]
    if names.dims != (2, len(labels.values)) or len(names.values) != 2 * len(labels.values):
        raise ValueError(f"{len(labels.values)} labels for names of shape {names.dims}")
    pairs = []
    for k, label in enumerate(labels.values):
        # The first index runs fastest, so the two of a pair stand together.
        a, b = (next(iter(name.values[0].values())).values[0] for name in names.values[2 * k : 2 * k + 2])
        if label not in (-1, 0, 1) or not (is_plain_name(a) and is_plain_name(b)):
            raise ValueError(f"a pair {a[:20]!r} {b[:20]!r} with the label {label}")
        pairs.append(Pair(a, b, label == 1))
    return pairs


@dataclass(frozen=True)
class AlignAgedb(Align):
    """AgeDB (0_MariaCallas_35_f.jpg, .pts beside it) -> AgeDB with its 30-year protocol, a training set, or both."""

    pairs: Path | None = input_file()
    """The protocol: 04_FINAL_protocol_30_years.mat (found by itself in the release) or lines 'name_a name_b 1|0'."""
    training_folder: str = ""
    """Name of a folder below --output for a training set of all pictures."""

    def plans(self) -> list[Plan]:
        check_folder_name(self.training_folder)
        return plan_agedb(self.raw, self.landmarks, self.already_aligned, self.pairs, self.training_folder)
