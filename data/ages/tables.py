"""Ages in a table beside the pictures: CSV text `key,age`, written here or by any other tool."""

import csv
import os
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
import tyro

from data.faces import UNKNOWN, Faces
from data.lists.fields import find_column, separator_of, shown, split_line
from meta import MAX_AGE, MIN_AGE, UserError
from utils.files import Progress, check_is_new, no_progress, numbered_lines, written_beside

HEADER = ("key", "age")
# Names of columns in other tools' tables, in lower case; of several in one table the one that stands first here counts.
KEY_COLUMNS = ("key", "path", "file_path", "filepath", "image_path", "img_path", "file", "filename", "file_name",
               "image_name", "image", "img", "picture", "photo", "record", "index", "name", "id")  # fmt: skip
AGE_COLUMNS = ("age", "ages", "age_years", "years", "predicted_age", "pred_age", "apparent_age", "estimated_age")
EXPECTED = "'key,age' per line is expected, such as 0_0/05179510.jpg,39"
ROWS_AT_ONCE = 50_000  # looked up together; about 10 MB of Python objects
NUM_SHOWN = 3  # of unknown keys and of pictures without an age, in a message
NUM_CHARACTERS_SHOWN = 80
MAX_AGE_CHARACTERS = 30  # more than any tool writes for one number


Columns: TypeAlias = tuple[str, str]  # of the picture and of the age: names in the header, or numbers from 1
AgeColumns = Annotated[  # the flag --age-columns of every script that takes such a table
    Columns | None,
    tyro.conf.arg(
        metavar="PICTURE AGE",
        help="Columns of the table of ages: two names of its header, or two numbers from 1. Else they are found by "
        "usual names.",
    ),
]


class AgeTable(NamedTuple):
    ages: np.ndarray  # (N,) int16, whole years, in the order of the index
    num_unknown: int  # lines about pictures that are not in the index


class _Rows(NamedTuple):
    lines: list[int]  # their numbers from 1
    keys: list[str]
    ages: np.ndarray  # float64, years


def write_age_table(path: str | Path, keys: Iterable[str], ages: np.ndarray, force: bool = False) -> None:
    """Writes one `key,age` a line below a header; `ages` (N,) are years, whole or with decimals.

    Raises:
        UserError: for a file that exists where `force` is not given, or a name with a line break in it.
    """
    ages = np.asarray(ages)
    assert ((ages >= MIN_AGE) & (ages <= MAX_AGE)).all(), "every age has to be one"  # NaN is not
    check_is_new(path, force)
    with written_beside(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write_row = csv.writer(file, lineterminator="\n").writerow
        write_row(HEADER)
        for key, age in zip(keys, ages, strict=True):
            if "\n" in key or "\r" in key:
                raise UserError(f"{key[:NUM_CHARACTERS_SHOWN]!r} has a line break in its name: rename it.")
            write_row((key, str(age)))  # str() gives a float32 the digits that bring it back, no more


def whole_years(ages: np.ndarray) -> np.ndarray:
    """(N,) years rounded half up to (N,) int16: 34.5 becomes 35."""
    years = np.floor(ages)
    return (years + (ages - years >= 0.5)).astype(np.int16)  # floor(age + 0.5) would be wrong just below a half


def read_ages(
    path: str | Path, index: Faces, progress: Progress = no_progress, columns: Columns | None = None
) -> np.ndarray:
    """(N,) int16 years out of a table about the pictures of `index` and no others, see `read_age_table`."""
    return read_age_table(path, index, progress=progress, columns=columns).ages


def read_age_table(
    path: str | Path,
    index: Faces,
    allow_unknown: bool = False,
    progress: Progress = no_progress,
    columns: Columns | None = None,
) -> AgeTable:
    """The age of every picture of `index` out of a CSV or TSV file, rounded half up to whole years.

    Columns are those that `columns` names (or numbers from 1), else they are found by a header (`KEY_COLUMNS`,
    `AGE_COLUMNS`, in any case); without one there are two, key and age, or MTLFace's four, id, file name, age and
    gender. A key is what `index.key` gives or a path: absolute, relative to the index's root, to the folder above it or
    to the working folder. Lines may stand in any order; the order of the index takes the least time. With
    `allow_unknown` lines about other pictures are left out and counted.

    Raises:
        UserError: for a file that cannot be read, a malformed line, an age that is none, two ages of one picture,
            unknown keys, or pictures without an age.
    """
    ages = np.full(len(index), UNKNOWN, np.int16)
    finder = _Finder(index)
    unknown: list[str] = []  # the first few, in words
    num_unknown = 0
    for rows in progress(_read_rows(path, columns), -(-len(index) // ROWS_AT_ONCE), "ages"):
        positions = finder.find(rows.keys)
        known = np.flatnonzero(positions >= 0)
        _put(ages, positions, known, rows, path)
        num_unknown += len(positions) - len(known)
        for row in np.flatnonzero(positions < 0)[: NUM_SHOWN - len(unknown)]:
            unknown.append(f"line {rows.lines[row]}: {rows.keys[row][:NUM_CHARACTERS_SHOWN]!r}")
    if num_unknown and not allow_unknown:
        raise UserError(_unknown_message(path, index, unknown, num_unknown))
    missing = np.flatnonzero(ages == UNKNOWN)
    if len(missing):
        raise UserError(_missing_message(path, index, missing))
    return AgeTable(ages, num_unknown)


def _put(ages: np.ndarray, positions: np.ndarray, known: np.ndarray, rows: _Rows, path: str | Path) -> None:
    """Puts the ages of the known rows in their places; two ages for one place are an error."""
    places, years = positions[known], whole_years(rows.ages[known])
    before = ages[places]
    ages[places] = years
    # Against earlier rows, and against later ones of these: of several at one place numpy keeps the last.
    for others in (np.where(before == UNKNOWN, years, before), ages[places]):
        for clash in np.flatnonzero(others != years)[:1]:
            row = known[clash]
            raise UserError(
                f"{str(path)!r}, line {rows.lines[row]}, gives {rows.keys[row][:NUM_CHARACTERS_SHOWN]!r} the age "
                f"{years[clash]} and another line gives it {others[clash]}: keep one of the two."
            )


def _unknown_message(path: str | Path, index: Faces, unknown: list[str], num_unknown: int) -> str:
    examples = ", ".join(unknown) + (", ..." if num_unknown > len(unknown) else "")
    like = f", whose keys are like {index.key(0)!r}" if len(index) else ""
    return (
        f"The age table {str(path)!r} has {num_unknown:,} lines about pictures that are not in {index.root!r} "
        f"({examples}){like}: correct these lines, or let 'python prepare.py ages' with --from-table "
        "and --allow-unknown write a table without them."
    )


def _missing_message(path: str | Path, index: Faces, missing: np.ndarray) -> str:
    examples = ", ".join(repr(index.key(int(i))[:NUM_CHARACTERS_SHOWN]) for i in missing[:NUM_SHOWN])
    examples += ", ..." if len(missing) > NUM_SHOWN else ""
    return (
        f"The age table {str(path)!r} has no age for {len(missing):,} of the {len(index):,} pictures in "
        f"{index.root!r} ({examples}): add a line for each, or let 'python prepare.py ages' with --weights predict all."
    )


# -------------------------------------------------------------------------------------------------------------- rows


def _read_rows(path: str | Path, columns: Columns | None) -> Iterator[_Rows]:
    """The lines below the header, many at a time."""
    numbered = numbered_lines(path, "age table", EXPECTED)
    number, line = next(numbered, (0, ""))
    if not line:
        raise UserError(f"The age table {str(path)!r} is empty: {EXPECTED}.")
    separator = separator_of(line)
    first = split_line(line, separator, f"{str(path)!r}, line {number},", EXPECTED)
    key_column, age_column, has_header = _columns(first, f"{str(path)!r}, line {number},", columns)
    rows = numbered if has_header else chain([(number, line)], numbered)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        keys, ages = [], array("d")
        for number, line in some:
            where = f"{str(path)!r}, line {number},"
            fields = split_line(line, separator, where, EXPECTED)
            if len(fields) != len(first):
                raise UserError(
                    f"{where} reads {shown(line)} and has {len(fields)} fields where the first line has "
                    f"{len(first)}: put a name that holds a separator between double quotes."
                )
            keys.append(fields[key_column])
            ages.append(_parse_age(fields[age_column], where))
        yield _Rows([number for number, _ in some], keys, np.array(ages, np.float64))


def _columns(first: list[str], where: str, columns: Columns | None) -> tuple[int, int, bool]:
    """Where the key stands, where the age stands, and whether the first line is a header."""
    if columns is not None:
        return _wanted_columns(first, where, columns)
    found = [find_column(first, known) for known in (KEY_COLUMNS, AGE_COLUMNS)]
    if None not in found:
        return found[0], found[1], True
    if len(first) == 2:
        return 0, 1, False
    if len(first) == 4 and _is_age(first[2]) and first[3].strip() in ("0", "1") and not _is_age(first[1]):
        return 1, 2, False  # MTLFace's lines: id, file name, age, gender
    raise UserError(
        f"{where} has {len(first)} fields and names no columns that are known: give --age-columns with two names or "
        "numbers, of the picture and of the age, or begin the table with a line such as 'path,age' in the order of "
        "its columns."
    )


def _wanted_columns(first: list[str], where: str, columns: Columns) -> tuple[int, int, bool]:
    """The same for columns that the user names, or numbers from 1."""
    are_numbers = all(name.isascii() and name.isdigit() for name in columns)
    places = []
    for name in columns:
        place = int(name[:9]) - 1 if are_numbers else find_column(first, [name.strip().lower()])
        if place is None or not 0 <= place < len(first):
            raise UserError(
                f"{where} has no column {shown(name)}, it reads {shown(' '.join(first))}: give --age-columns two of "
                f"its names, or two numbers from 1 to {len(first)}, of the picture and of the age."
            )
        places.append(place)
    key, age = places
    return key, age, not (are_numbers and _is_age(first[age]))


def _is_age(text: str) -> bool:
    try:
        _parse_age(text, "")
    except UserError:
        return False
    return True


def _parse_age(text: str, where: str) -> float:
    try:
        # float() would also take "3_9" and digits of other scripts.
        age = float(text) if text.isascii() and "_" not in text and len(text) <= MAX_AGE_CHARACTERS else None
    except ValueError:
        age = None
    if age is None:
        raise UserError(f"{where} has {shown(text)} where an age in years should stand: {EXPECTED}.")
    if not MIN_AGE <= age <= MAX_AGE:  # NaN too
        raise UserError(
            f"{where} has the age {shown(text)}, outside {MIN_AGE} to {MAX_AGE} years: correct it, or take the "
            "line and the picture out."
        )
    return age


# ------------------------------------------------------------------------------------------------------------ places


class _Finder:
    """Positions of keys in an index, without a dict: of five million keys that would take more than a gigabyte."""

    def __init__(self, index: Faces):
        self.index, self.next = index, 0
        self.folder = os.path.join(os.path.abspath(index.root), "")  # with a / at its end
        self.hashes = self.order = None  # (N,) int64 each, made when first a key stands out of order

    def find(self, keys: list[str]) -> np.ndarray:
        """(len(keys),) int64, -1 where the index has no such picture."""
        positions = np.full(len(keys), -1, np.int64)
        num_in_order = 0
        while num_in_order < len(keys) and self._is_next(keys[num_in_order]):
            positions[num_in_order] = self.next
            num_in_order += 1
            self.next += 1
        if num_in_order < len(keys):
            positions[num_in_order:] = self._look_up(keys[num_in_order:])
            self.next = int(positions[-1]) + 1
        return positions

    def _is_next(self, key: str) -> bool:
        return self.next < len(self.index) and key == self.index.key(self.next)

    def _look_up(self, keys: list[str]) -> np.ndarray:
        if self.hashes is None:
            hashes = np.fromiter((hash(self.index.key(i)) for i in range(len(self.index))), np.int64, len(self.index))
            self.order = np.argsort(hashes)
            self.hashes = hashes[self.order]
        positions = self._look_up_exact(keys)
        for spelled in (self._below_root, self._below_working_folder, self._below_its_name):
            lost = np.flatnonzero(positions < 0)
            positions[lost] = self._look_up_exact([spelled(keys[row]) for row in lost])
        return positions

    def _look_up_exact(self, keys: list[str]) -> np.ndarray:
        wanted = np.fromiter(map(hash, keys), np.int64, len(keys))
        first, last = (np.searchsorted(self.hashes, wanted, side).tolist() for side in ("left", "right"))
        found = np.full(len(keys), -1, np.int64)
        for row, key in enumerate(keys):
            for place in self.order[first[row] : last[row]].tolist():  # more than one where hashes are equal
                if self.index.key(place) == key:
                    found[row] = place
                    break
        return found

    def _below_root(self, key: str) -> str:
        return os.path.normpath(key).removeprefix(self.folder)

    def _below_working_folder(self, key: str) -> str:
        return os.path.abspath(key).removeprefix(self.folder)

    def _below_its_name(self, key: str) -> str:
        return os.path.normpath(key).removeprefix(os.path.basename(self.folder[:-1]) + os.sep)
