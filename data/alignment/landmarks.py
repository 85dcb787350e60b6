"""Landmark files as data sets come with them: five points a face, (5, 2) float64, in the order of alignment.TEMPLATE.

Places are pixel indices, (0, 0) the centre of the first pixel. Whether five points can be a face is asked by
alignment.check_points; here a file is refused that does not hold what it should.
"""

import csv
import json
import math
import os
import stat
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from meta import UserError
from utils.files import numbered_lines
from utils.wrong_files import wrong_file

# Which of 68 points make the five: the mean of each group, counted from 0.
# FG-NET has an order of its own: pupils, nose tip, mouth corners (checked by drawing them on its pictures).
# iBUG's order, which AgeDB and dlib have: six points around each eye, nose tip, mouth corners.
LAYOUTS_68 = {
    "fgnet": ((31,), (36,), (67,), (48,), (54,)),
    "ibug": (tuple(range(36, 42)), tuple(range(42, 48)), (30,), (48,), (54,)),
}
# iBUG's files were made with MATLAB, where the first pixel is 1 (menpo subtracts it too). FG-NET's were not.
FIRST_PIXEL = {"fgnet": 0.0, "ibug": 1.0}
NUM_POINTS_68 = 68

COLUMNS = ("path", *(f"{axis}{number}" for number in range(1, 6) for axis in "xy"))
MAX_PLACE = 1_000_000.0  # pixels: what is more is no place in a picture
MAX_JSON_BYTES = 1 << 30
NUM_CHARACTERS_SHOWN = 80

EXPECTED_PTS = "'version: 1', 'n_points: 68', '{', 68 lines 'x y' and '}' are expected"
EXPECTED_FIVE = "five lines 'x y' are expected"
EXPECTED_CSV = f"a first line with the columns {','.join(COLUMNS)} and then a line for each picture are expected"
EXPECTED_JSON = '{"picture.jpg": [[x, y], [x, y], [x, y], [x, y], [x, y]], ...} is expected'
EXPECTED_LST = (
    "tab-separated 'aligned path label', then perhaps a box of 4 numbers, then perhaps 5 x and 5 y are expected"
)


def read_pts(path: str | Path, layout: str) -> np.ndarray:
    """The five points of a file of 68, `layout` "fgnet" or "ibug".

    Raises:
        UserError: for a file that can't be read or isn't of this form.
    """
    points: list[list[float]] = []
    state = "before"
    for number, line in numbered_lines(path, "landmark file", EXPECTED_PTS):
        where, words = f"{str(path)!r}, line {number}", line.replace(":", " ").split()
        if state == "inside" and words == ["}"]:
            state = "after"
        elif state == "inside" and len(points) < NUM_POINTS_68:
            points.append(_numbers(words, 2, where, line, EXPECTED_PTS))
        elif state == "before" and words == ["{"]:
            state = "inside"
        elif state != "before" or words not in (["version", "1"], ["n_points", str(NUM_POINTS_68)]):
            raise _unexpected(where, line, EXPECTED_PTS)
    if state != "after" or len(points) != NUM_POINTS_68:
        raise UserError(
            f"The landmark file {str(path)!r} ends after {len(points)} points: {EXPECTED_PTS}; get it again."
        )
    groups = [np.array([points[i] for i in group]) for group in LAYOUTS_68[layout]]
    return np.array([group.mean(0) for group in groups]) - FIRST_PIXEL[layout]


def read_five_lines(path: str | Path) -> np.ndarray:
    """The points of a `NAME_5loc_attri.txt` of CALFW and CPLFW.

    Raises:
        UserError: for a file that can't be read or isn't of this form.
    """
    points: list[list[float]] = []
    for number, line in numbered_lines(path, "landmark file", EXPECTED_FIVE):
        where = f"{str(path)!r}, line {number}"
        if len(points) == 5:
            raise _unexpected(where, line, EXPECTED_FIVE)
        points.append(_numbers(line.split(), 2, where, line, EXPECTED_FIVE))
    if len(points) != 5:
        raise UserError(f"The landmark file {str(path)!r} has {len(points)} lines: {EXPECTED_FIVE}; get it again.")
    return np.array(points)


class PointTable:
    """Five points for each of many pictures, found by the pictures' paths."""

    def __init__(self, source: str):
        self.source = source  # for messages
        self._rows: dict[str, int] = {}
        self._by_name: dict[str, list[str]] = {}
        self._numbers = array("d")  # ten a picture: a million Python lists would take a gigabyte

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, path: str, numbers: list[float], where: str) -> None:
        """`numbers` x1 y1 ... x5 y5. Raises UserError where a path comes a second time."""
        path = _plain(path)
        if path in self._rows:
            raise UserError(f"{where}, has points for {path[:NUM_CHARACTERS_SHOWN]!r} again: leave one of them out.")
        self._rows[path] = len(self._rows)
        self._by_name.setdefault(PurePosixPath(path).name, []).append(path)
        self._numbers.extend(numbers)

    def find(self, path: str) -> np.ndarray | None:
        """Points (5, 2) of the picture `path`, relative to its data set's folder, or None.

        A path of the table counts where it is the same or where one of the two ends like the other, whole folder
        names compared: tables are written with the folders of other people's machines.

        Raises:
            UserError: where several paths of the table would do.
        """
        path = _plain(path)
        if path in self._rows:
            return self._points(path)
        candidates = self._by_name.get(PurePosixPath(path).name, [])
        fitting = [other for other in candidates if f"/{other}".endswith(f"/{path}") or path.endswith(f"/{other}")]
        if len(fitting) > 1:
            raise UserError(
                f"{self.source} has points for {fitting[0][:NUM_CHARACTERS_SHOWN]!r} and for "
                f"{fitting[1][:NUM_CHARACTERS_SHOWN]!r}, and {path[:NUM_CHARACTERS_SHOWN]!r} could be either: "
                "write paths relative to the folder of pictures."
            )
        return self._points(fitting[0]) if fitting else None

    def _points(self, path: str) -> np.ndarray:
        start = 10 * self._rows[path]
        return np.array(self._numbers[start : start + 10]).reshape(5, 2)


class LandmarkFormat(NamedTuple):
    """A form of tables of landmarks."""

    read: Callable[[Path, PointTable], None]  # the file into the table; raises UserError
    shown: str  # for help texts


LANDMARK_FORMATS: dict[str, LandmarkFormat] = {}  # by the ending of the file, in lower case


def landmark_format(*endings: str, shown: str) -> Callable:
    """A decorator that registers a reader of landmark files with these endings; `shown` is their form for --help."""

    def register(read: Callable[[Path, PointTable], None]) -> Callable:
        LANDMARK_FORMATS.update(dict.fromkeys(endings, LandmarkFormat(read, shown)))
        return read

    return register


def landmarks_help() -> str:
    """The help of flags that take a table of landmarks."""
    endings: dict[str, list[str]] = {}
    for ending, entry in LANDMARK_FORMATS.items():
        endings.setdefault(entry.shown, []).append(ending)
    return "Five points a picture: " + ", ".join(f"{' or '.join(of)} ({shown})" for shown, of in endings.items())


def read_point_table(path: str | Path) -> PointTable:
    """Points of many pictures from one file, by the reader of LANDMARK_FORMATS that its ending names.

    Raises:
        UserError: for a file that can't be read, isn't of its form, or holds no points.
    """
    path = Path(path)
    if wrong := wrong_file(path, "landmark file", ("text",)):
        raise UserError(f"--landmarks {str(path)!r} {wrong[0]}: {wrong[1]}.")
    entry = LANDMARK_FORMATS.get(path.suffix.lower())
    if entry is None:
        raise UserError(
            f"The landmark file {str(path)!r} has no extension of {', '.join(LANDMARK_FORMATS)}: rename it."
        )
    table = PointTable(repr(str(path)))
    entry.read(path, table)
    if not len(table):
        raise UserError(f"The landmark file {str(path)!r} holds points of no picture: give another one.")
    return table


def csv_rows(path: Path, what: str, expected: str) -> Iterator[tuple[str, list[str]]]:
    """(where for messages, cells) of each line of a CSV file; a cell can't hold a line break.

    Raises:
        UserError: for a file or a line that can't be read.
    """
    for number, line in numbered_lines(path, what, expected):
        where = f"{str(path)!r}, line {number}"
        try:
            rows = list(csv.reader([line.rstrip("\r\n")], strict=True))
        except csv.Error as error:
            raise _unexpected(where, line, expected) from error
        if len(rows) != 1:
            raise _unexpected(where, line, expected)
        yield where, [cell.strip() for cell in rows[0]]


def csv_columns(where: str, header: list[str], wanted: tuple[str, ...], expected: str) -> list[int]:
    """Positions of the columns `wanted` in a first line, in any case.

    Raises:
        UserError: naming the first that is missing or there twice.
    """
    names = [name.lower() for name in header]
    for column in wanted:
        if names.count(column) != 1:
            raise UserError(f"{where}, has the column {column!r} {names.count(column)} times: {expected}.")
    return [names.index(column) for column in wanted]


@landmark_format(".csv", shown="path,x1,y1,...,x5,y5")
def _read_csv(path: Path, table: PointTable) -> None:
    """The columns may stand in any order, others are not looked at."""
    places: list[int] = []
    for where, cells in csv_rows(path, "landmark file", EXPECTED_CSV):
        if not places:
            places = csv_columns(where, cells, COLUMNS, EXPECTED_CSV)
            continue
        if len(cells) <= max(places):
            raise _unexpected(where, ",".join(cells), EXPECTED_CSV)
        name, *words = (cells[place] for place in places)
        table.add(_named(name, where), _numbers(words, 10, where, ",".join(cells), EXPECTED_CSV), where)


@landmark_format(".json", shown="{path: [[x, y] * 5]}")
def _read_json(path: Path, table: PointTable) -> None:
    for name, points in _json_object(path):
        where = f"{str(path)!r}, picture {name[:NUM_CHARACTERS_SHOWN]!r}"
        if not (isinstance(points, list) and len(points) == 5 and all(isinstance(xy, list) for xy in points)):
            raise UserError(f"{where}: {EXPECTED_JSON}.")
        numbers = [number for xy in points if len(xy) == 2 for number in xy]
        # bool is a kind of int
        if len(numbers) != 10 or not all(type(number) in (int, float) and _is_place(number) for number in numbers):
            raise UserError(f"{where}, has no ten numbers that are places: {EXPECTED_JSON}.")
        table.add(_named(name, where), [float(number) for number in numbers], where)


@landmark_format(".lst", ".txt", shown="InsightFace's train.lst")
def _read_lst(path: Path, table: PointTable) -> None:
    """Ten numbers (5 x, then 5 y) at the end of a line; lines without them are pictures without landmarks."""
    for number, line in numbered_lines(path, "landmark file", EXPECTED_LST):
        where, cells = f"{str(path)!r}, line {number}", line.rstrip("\r\n").split("\t")
        if len(cells) not in (3, 7, 13, 17):
            raise _unexpected(where, line, EXPECTED_LST)
        if len(cells) >= 13:
            numbers = _numbers(cells[-10:], 10, where, line, EXPECTED_LST)
            points = [number for xy in zip(numbers[:5], numbers[5:], strict=True) for number in xy]
            table.add(_named(cells[1], where), points, where)


def _json_object(path: Path) -> list[tuple[str, object]]:
    """The pairs of a JSON file that is one object, a key that comes twice twice."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is no file, or has more than {MAX_JSON_BYTES:,} bytes")
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r}, line {error.lineno}, is no JSON ({error.msg}): {EXPECTED_JSON}.") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, a NUL byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The landmark file {str(path)!r} cannot be read, {reason}: {EXPECTED_JSON}.") from error
    if not isinstance(pairs, _Pairs):
        raise UserError(f"{str(path)!r} is JSON of another kind: {EXPECTED_JSON}.")
    return pairs


class _Pairs(list):
    """A JSON object as a list of its pairs: a dict would keep the last of two equal keys without a word."""


def _numbers(words: list[str], count: int, where: str, line: str, expected: str) -> list[float]:
    """Exactly `count` numbers that are places in a picture."""
    try:
        # float() would also take "1_0" and digits of other scripts.
        numbers = [float(word) if word.isascii() and "_" not in word else math.nan for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(_is_place(number) for number in numbers):
        raise _unexpected(where, line, expected)
    return numbers


def _is_place(number: float) -> bool:
    return -MAX_PLACE <= number <= MAX_PLACE  # False for NaN


def _unexpected(where: str, line: str, expected: str) -> UserError:
    return UserError(f"{where}, reads {line.strip()[:NUM_CHARACTERS_SHOWN]!r}: {expected}.")


def _named(name: str, where: str) -> str:
    if not name or "\0" in name:
        raise UserError(f"{where}, names no picture: give its path.")
    return name


def _plain(path: str) -> str:
    """A path as tables and folders both have it: slashes, no `./`."""
    return os.path.normpath(path.replace("\\", "/"))
