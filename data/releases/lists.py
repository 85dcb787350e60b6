"""Lists that come with raw releases, or decide what is made of them: pairs and their folds, ages, subjects."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data.alignment.landmarks import csv_columns, csv_rows
from data.pairs import Pair
from data.releases.mat import MatArray, read_mat_variable
from meta import MAX_AGE, MIN_AGE, UserError
from utils.files import numbered_lines

NUM_FOLDS = 10
NUM_CHARACTERS_SHOWN = 80
EXPECTED_CALFW = (
    "a pair is two lines 'Name_0001.jpg tag', the tag 1 to 10 for the same person (the fold) or 0 for two people"
)
EXPECTED_PAIR = "one 'name_a name_b 1|0' per line is expected, names or paths without spaces below the pictures' folder"
EXPECTED_MAT = "'splits' with ten cells of names and labels is expected, as in 04_FINAL_protocol_30_years.mat"
EXPECTED_MORPH2 = "the columns photo and age of morph_2008_nonCommercial.csv are expected"
SUBJECT_COLUMNS = ("subject", "gallery", "probe", "setting")
EXPECTED_SUBJECTS = f"a first line {','.join(SUBJECT_COLUMNS)} and then a line for each subject are expected"


def pair_lines(pairs: Iterable[Pair]) -> str:
    """The text of a pair list, as data.pairs reads it."""
    return "".join(f"{a} {b} {int(genuine)}\n" for a, b, genuine in pairs)


# -------------------------------------------------------------------------------------------------------------- pairs


def read_calfw_pairs(path: str | Path) -> list[Pair]:
    """CALFW's official list, dealt into ten folds: each its genuine, then its impostor pairs.

    A genuine pair has its fold in the list; the impostors have none and are dealt in their order, as many to each
    fold as it has genuine pairs. The official list has 6,000 pairs; a shorter one may have any multiple of 20.

    Raises:
        UserError: for a list that can't be read, isn't of this form, or can't be dealt.
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
        raise _unexpected(f"{str(path)!r}, line {number}", line, EXPECTED_CALFW)
    return _CalfwLine(number, fields[0].removeprefix("./"), int(fields[1]))


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
            raise _unexpected(f"{str(path)!r}, line {number}", line, EXPECTED_PAIR)
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


# ----------------------------------------------------------------------------------------------------- ages, subjects


def read_morph2_ages(path: str | Path) -> dict[str, int]:
    """Ages in years by the lower-case base name of the picture, from MORPH's CSV.

    Raises:
        UserError: for a file that can't be read, lacks a column, or names a picture with two ages.
    """
    ages: dict[str, int] = {}
    places: list[int] = []
    for where, cells in csv_rows(Path(path), "table of ages", EXPECTED_MORPH2):
        if not places:
            places = csv_columns(where, cells, ("photo", "age"), EXPECTED_MORPH2)
            continue
        photo, age = (cells[place] if place < len(cells) else "" for place in places)
        name = photo.replace("\\", "/").rpartition("/")[2].lower()
        if not name or not is_whole_number(age) or not MIN_AGE <= int(age) <= MAX_AGE:
            raise _unexpected(where, ",".join(cells), f"{EXPECTED_MORPH2}, an age from {MIN_AGE} to {MAX_AGE}")
        if ages.setdefault(name, int(age)) != int(age):
            raise UserError(f"{where}, gives {name[:NUM_CHARACTERS_SHOWN]!r} the age {age}, and a line before "
                            f"{ages[name]}: keep the right one.")  # fmt: skip
    if not ages:
        raise UserError(f"The table of ages {str(path)!r} holds no pictures: {EXPECTED_MORPH2}.")
    return ages


class Subject(NamedTuple):
    """A subject of the probe and gallery protocol: base names of two pictures, and the smallest setting it is in."""

    number: int
    gallery: str
    probe: str
    setting: int


def subject_lines(subjects: Iterable[Subject]) -> str:
    """The text of a CSV of subjects."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(SUBJECT_COLUMNS)
    rows.writerows((f"{subject.number:06d}", *subject[1:]) for subject in subjects)
    return buffer.getvalue()


def read_subjects(path: str | Path, settings: Sequence[int]) -> list[Subject]:
    """Subjects of a CSV with the columns subject, gallery, probe and setting (one of `settings`).

    Raises:
        UserError: for a file that can't be read, a line that isn't of this form, or a subject that comes twice.
    """
    subjects: dict[int, Subject] = {}
    places: list[int] = []
    for where, cells in csv_rows(Path(path), "list of subjects", EXPECTED_SUBJECTS):
        if not places:
            places = csv_columns(where, cells, SUBJECT_COLUMNS, EXPECTED_SUBJECTS)
            continue
        number, gallery, probe, setting = (cells[place] if place < len(cells) else "" for place in places)
        good = is_whole_number(number) and is_plain_name(gallery) and is_plain_name(probe) and gallery != probe
        if not good or setting not in [str(known) for known in settings]:
            raise _unexpected(where, ",".join(cells), f"{EXPECTED_SUBJECTS}, the setting one of {list(settings)}")
        if int(number) in subjects:
            raise UserError(f"{where}, has the subject {int(number)} again: leave one of the lines out.")
        subjects[int(number)] = Subject(int(number), gallery, probe, int(setting))
    if not subjects:
        raise UserError(f"The list of subjects {str(path)!r} is empty: {EXPECTED_SUBJECTS}.")
    return list(subjects.values())


def is_plain_name(name: str) -> bool:
    """Whether it is the name of a file that stands in a list: no folders, no white space, not hidden."""
    return bool(name) and not name.startswith(".") and not any(c in "/\\\0" or c.isspace() for c in name)


def is_inner_path(path: str) -> bool:
    """Whether it is a name, or a path of folders and a name, that stays below the folder it is looked for in."""
    return all(map(is_plain_name, path.removeprefix("./").split("/")))


def is_whole_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _unexpected(where: str, line: str, expected: str) -> UserError:
    return UserError(f"{where}, reads {line.strip()[:NUM_CHARACTERS_SHOWN]!r}: {expected}.")
