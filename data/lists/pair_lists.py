"""Pair lists as people have them: CSV, TSV or blanks, with or without a header, and LFW's pairs.txt.

The pairs come out in the order of the ten folds, which are tenths of the list as in every list of pairs here.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.lists.fields import find_column, separator_of, shown, split_line
from data.pairs import NUM_FOLDS, Pair, PairList, checked_folder, checked_name, locate_pairs
from meta import IMAGE_EXTENSIONS, UserError
from utils.files import numbered_lines

EXPECTED = (
    "'name_a name_b 1|0' per line is expected, or a header such as 'name_a,name_b,label', or LFW's 'name 1 2' and "
    "'name 1 other_name 1'"
)
_PICTURES = ("name", "image", "img", "file", "filename", "file_name", "path", "image_path", "img_path", "photo",
             "picture", "pic", "face", "")  # fmt: skip


def _spelled(*signs: str) -> tuple[str, ...]:
    return tuple(name.strip("_") for what in _PICTURES for sign in signs
                 for name in (f"{what}_{sign}", f"{what}{sign}", f"{sign}_{what}", f"{what}{sign}_path"))  # fmt: skip


# Names of columns, in lower case; of several in one header the one that stands first here counts.
FIRST_COLUMNS = _spelled("a", "1", "left", "first", "x")
SECOND_COLUMNS = _spelled("b", "2", "right", "second", "y")
LABEL_COLUMNS = ("label", "same", "is_same", "issame", "same_person", "genuine", "is_genuine", "match", "is_match",
                 "matched", "target", "answer", "actual_issame", "class", "y_true")  # fmt: skip
FOLD_COLUMNS = ("fold", "folds", "fold_id", "set", "split")
SAME = ("1", "1.0", "true", "t", "yes", "y", "same", "genuine", "match", "positive")
DIFFERENT = ("0", "0.0", "-1", "false", "f", "no", "n", "different", "diff", "impostor", "imposter", "mismatch",
             "nonmatch", "negative")  # fmt: skip
_ENDINGS = "|".join(map(re.escape, IMAGE_EXTENSIONS))
# Two names with blanks in them, as far as their endings separate them, the answer and perhaps the fold.
_SPACED = re.compile(rf"\s*(.+?(?:{_ENDINGS}))\s+(.+(?:{_ENDINGS}))\s+(\S+)(?:\s+(\S+))?\s*", re.IGNORECASE)


class _Row(NamedTuple):
    pair: Pair
    fold: str | None


class _Columns(NamedTuple):
    a: int
    b: int
    label: int
    fold: int | None
    separator: str | None
    num_fields: int
    fold_name: str = ""  # in the header; without one nobody says that the fourth field is a fold


class ListedPairs(NamedTuple):
    """The pairs of a list with their pictures, and what was decided about it, a sentence each."""

    pairs: PairList
    notes: tuple[str, ...]


def read_any_pair_list(list_path: str | Path, images_folder: str | Path, allow_missing: bool = False) -> ListedPairs:
    """Pairs in the order of ten folds: by the list's column of folds, by its order, or else dealt.

    Names are paths below `images_folder`, perhaps with the folder's own name before them, with or without the ending of
    a picture. With `allow_missing` pairs without both pictures are dropped and counted; the folds are those of all.

    Raises:
        UserError: for a list that can't be read or has no two pictures and an answer a line, that holds pairs of one
            kind only or too few for ten folds; for a missing folder or missing pictures.
    """
    folder = checked_folder(images_folder)
    lines = list(numbered_lines(list_path, "pair list", EXPECTED))
    if not lines:
        raise UserError(f"The pair list {str(list_path)!r} holds no pairs: {EXPECTED}.")
    rows, fold_name = _read_lfw(lines, list_path), ""
    if rows is None:
        rows, fold_name = _read_columns(lines, list_path, folder)
    order, how = _in_folds(rows, fold_name, list_path)
    pairs, num_renamed = _as_on_disk([rows[i].pair for i in order], folder)
    notes = [f"{list_path}: {len(rows):,} pairs, {how}"]
    if num_renamed:
        notes.append(f"{list_path}: {num_renamed:,} pictures are found in {folder!r} under another ending, without "
                     "the name of the folder or with letters and slashes encoded otherwise")  # fmt: skip
    return ListedPairs(locate_pairs(pairs, folder, allow_missing), tuple(notes))


# ---------------------------------------------------------------------------------------------------- LFW's pairs.txt


def _read_lfw(lines: Sequence[tuple[int, str]], path: str | Path) -> list[_Row] | None:
    """The pairs of a list as LFW's, which may begin with its counts; None for another kind of list."""
    first = lines[0][1].split()
    has_counts = len(first) <= 2 and all(field.isdecimal() for field in first)
    if not has_counts and not any(_is_lfw_impostor(line.split()) for _, line in lines):
        return None
    rows = [_lfw_row(line, f"{str(path)!r}, line {number},") for number, line in lines[has_counts:]]
    expected = 2 * int(first[-1][:9]) * (int(first[0][:9]) if len(first) == 2 else 1) if has_counts else len(rows)
    if len(rows) != expected:
        raise UserError(
            f"The pair list {str(path)!r} has {len(rows):,} pairs and says {' x '.join(first)} of either kind in its "
            f"first line, {expected:,} in all: get it again, or correct that line."
        )
    return rows


def _is_lfw_impostor(fields: list[str]) -> bool:
    return (len(fields) == 4 and fields[1].isdecimal() and fields[3].isdecimal() and not fields[2].isdecimal()
            and _answer(fields[2]) is None)  # fmt: skip


def _lfw_row(line: str, where: str) -> _Row:
    """`Aaron_Peirsol 1 2`, or `AJ_Cook 1 Marsha_Thomason 1`: Aaron_Peirsol/Aaron_Peirsol_0001, ..."""
    fields = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
    numbers = fields[1::2] if len(fields) == 4 else fields[1:]
    if len(fields) not in (3, 4) or not all(map(_is_number, numbers)):
        raise UserError(f"{where} reads {shown(line)}: 'name 1 2' or 'name 1 other_name 1' is expected, as in LFW's "
                        "pairs.txt.")  # fmt: skip
    people = (fields[0], fields[0] if len(fields) == 3 else fields[2])
    names = [checked_name(f"{person.strip()}/{person.strip()}_{int(number):04d}", where)
             for person, number in zip(people, numbers, strict=True)]  # fmt: skip
    return _Row(Pair(*names, genuine=len(fields) == 3), None)


def _is_number(text: str) -> bool:
    return text.strip().isdecimal() and len(text) < 10


# ------------------------------------------------------------------------------------------------------------ columns


def _read_columns(lines: Sequence[tuple[int, str]], path: str | Path, folder: str) -> tuple[list[_Row], str]:
    """The rows of a list with a pair a line, and what its column of folds is called ("" without one)."""
    number, line = lines[0]
    columns, has_header = _find_columns(line, f"{str(path)!r}, line {number},")
    above = os.path.join(os.path.abspath(folder), "")
    rows = [_row(line, columns, above, f"{str(path)!r}, line {number},") for number, line in lines[has_header:]]
    if not rows:
        raise UserError(f"The pair list {str(path)!r} holds no pairs below its header: {EXPECTED}.")
    return rows, columns.fold_name


def _find_columns(line: str, where: str) -> tuple[_Columns, bool]:
    """Where names, answer and fold stand, and whether the line is a header."""
    ways: dict[str | None, list[str]] = {}
    faults = []
    for separator in dict.fromkeys((separator_of(line), None)):  # a name may hold a comma where blanks separate
        try:
            ways[separator] = _fields(line, separator, where)
        except UserError as error:
            faults.append(error)
    if not ways:
        raise faults[0]
    for separator, fields in ways.items():
        found = [find_column(fields, known) for known in (FIRST_COLUMNS, SECOND_COLUMNS, LABEL_COLUMNS)]
        fold = find_column(fields, FOLD_COLUMNS)
        if None not in found and len(set(found)) == 3:
            name = "" if fold is None else fields[fold].strip()
            return _Columns(*found, fold, separator, len(fields), name), True
    for separator, fields in ways.items():
        places = _places_without_header([_answer(field) is not None for field in fields], fields)
        if places is not None:
            return _Columns(*places, separator, len(fields), "the fourth" if places[3] is not None else ""), False
    raise UserError(f"{where} reads {shown(line)}, which names no columns of two pictures and an answer that are known "
                    f"and is no pair itself: {EXPECTED}.")  # fmt: skip


def _places_without_header(is_answer: list[bool], fields: list[str]) -> tuple[int, int, int, int | None] | None:
    if len(fields) == 3 and is_answer[2]:
        return 0, 1, 2, None
    if len(fields) == 3 and is_answer[0]:
        return 1, 2, 0, None
    if len(fields) == 4 and is_answer[2] and fields[3].strip().isdecimal():
        return 0, 1, 2, 3
    return None


def _fields(line: str, separator: str | None, where: str) -> list[str]:
    if separator is None and '"' not in line and (spaced := _SPACED.fullmatch(line)):
        return [field for field in spaced.groups() if field is not None]
    return split_line(line, separator, where, EXPECTED)


def _row(line: str, columns: _Columns, above: str, where: str) -> _Row:
    """`above`: the folder of images as whole paths begin with it."""
    fields = _fields(line, columns.separator, where)
    if len(fields) != columns.num_fields:
        raise UserError(
            f"{where} reads {shown(line)} and has {len(fields)} fields where the first line has {columns.num_fields}: "
            f"put a name that holds a separator between double quotes; {EXPECTED}."
        )
    genuine = _answer(fields[columns.label])
    if genuine is None:
        raise UserError(f"{where} has {shown(fields[columns.label])} where 1 (same person) or 0 should stand: "
                        f"{EXPECTED}.")  # fmt: skip
    names = [checked_name(fields[place].strip().removeprefix(above), where) for place in (columns.a, columns.b)]
    return _Row(Pair(*names, genuine), None if columns.fold is None else fields[columns.fold].strip())


def _answer(text: str) -> bool | None:
    word = text.strip().lower()
    return True if word in SAME else False if word in DIFFERENT else None


# -------------------------------------------------------------------------------------------------------------- folds


def _in_folds(rows: Sequence[_Row], fold_name: str, path: str | Path) -> tuple[np.ndarray, str]:
    """The order (P,) in which tenths of the list are its folds, and in words how they came about."""
    genuine = np.array([row.pair.genuine for row in rows])
    num_genuine, num_impostor = int(genuine.sum()), int((~genuine).sum())
    if not (num_genuine and num_impostor):
        kind = "genuine" if num_genuine else "impostor"
        raise UserError(
            f"The pair list {str(path)!r} holds {kind} pairs only, {len(rows):,} of them: accuracy needs "
            "pairs of both kinds, add the others."
        )
    if min(num_genuine, num_impostor) < NUM_FOLDS:
        raise UserError(
            f"The pair list {str(path)!r} holds {num_genuine:,} genuine and {num_impostor:,} impostor pairs: ten folds "
            "need ten of each at least, add some."
        )
    in_order = np.arange(len(rows))
    why = "the tenths of the list in its order lack one kind"
    if fold_name:
        by_column = _order_by_folds([row.fold for row in rows])
        if by_column is not None and _has_both_kinds(genuine[by_column]):
            return by_column, f"folds by the column {fold_name!r}"
        why = f"the column {fold_name!r} does not give ten folds of one size with both kinds"
    elif _has_both_kinds(genuine):
        return in_order, "folds by the order of the list"
    return _dealt(genuine), f"folds dealt so that each has both kinds, since {why}"


def _order_by_folds(folds: Sequence[str]) -> np.ndarray | None:
    """The order (P,) of the pairs by their folds; None unless these are ten, as long as the tenths of a list."""
    names = sorted(set(folds), key=lambda name: (len(name), name))  # 2 before 10
    members = [[i for i, fold in enumerate(folds) if fold == name] for name in names]
    members.sort(key=len, reverse=True)  # where ten does not divide, the first are one longer
    if [len(one) for one in members] != [len(part) for part in np.array_split(np.arange(len(folds)), NUM_FOLDS)]:
        return None
    return np.array([i for one in members for i in one])


def _has_both_kinds(genuine: np.ndarray) -> bool:
    return all(0 < part.sum() < len(part) for part in np.array_split(genuine, NUM_FOLDS))


def _dealt(genuine: np.ndarray) -> np.ndarray:
    """An order (P,) whose tenths have as equal shares of both kinds as can be, either kind in the list's order."""
    shares = np.array_split(np.flatnonzero(genuine), NUM_FOLDS)
    impostors, order, start = np.flatnonzero(~genuine), [], 0
    for share, part in zip(shares, np.array_split(genuine, NUM_FOLDS), strict=True):
        end = start + len(part) - len(share)
        order += [share, impostors[start:end]]
        start = end
    return np.concatenate(order)


# -------------------------------------------------------------------------------------------------------------- names


def _as_on_disk(pairs: Sequence[Pair], folder: str) -> tuple[list[Pair], int]:
    """The pairs with the names that their files have, and how many names that changed."""
    names = dict.fromkeys(name for pair in pairs for name in pair[:2])
    found = {name: _on_disk(name, folder) for name in names}
    renamed = sum(name != on_disk for name, on_disk in found.items())
    return [Pair(found[pair.name_a], found[pair.name_b], pair.genuine) for pair in pairs], renamed


def _on_disk(name: str, folder: str) -> str:
    """The name of the file below the folder that a name of the list means; the name itself where there is none."""
    inner = name.removeprefix(os.path.basename(os.path.abspath(folder)) + os.sep)
    spelled = [name, inner, *(unicodedata.normalize(form, inner) for form in ("NFC", "NFD"))]  # macOS has the second
    with_slashes = inner.replace("\\", "/")  # Windows has the others
    if not os.path.isabs(with_slashes) and os.pardir not in with_slashes.split("/"):
        spelled.append(with_slashes)
    for one in dict.fromkeys(spelled):
        stem = os.path.splitext(one)[0] if one.lower().endswith(IMAGE_EXTENSIONS) else one
        endings = [cased for ending in IMAGE_EXTENSIONS for cased in (ending, ending.upper())]
        for candidate in (one, *(stem + ending for ending in endings)):
            if os.path.isfile(os.path.join(folder, candidate)):
                return candidate
    return name
