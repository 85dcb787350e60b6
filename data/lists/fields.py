"""Lines of tables and lists that other tools wrote -> fields: separators, double quotes, columns by name or number."""

import csv
from collections.abc import Sequence

from meta import UserError

SEPARATORS = ("\t", ",", ";")  # the first of these that the first line has; without any, blanks separate
NUM_CHARACTERS_SHOWN = 80  # of a line in a message


def separator_of(line: str) -> str | None:
    """The character that separates the fields of a line; None for blanks."""
    return next((sign for sign in SEPARATORS if sign in line), None)


def split_line(line: str, separator: str | None, where: str, expected: str) -> list[str]:
    """The fields of a line; one that holds a separator stands between double quotes.

    Raises: UserError for quotes that do not pair up; `where` and `expected` are words for it.
    """
    line = line.rstrip("\r\n")
    if '"' not in line:
        return line.split(separator)  # a third of the reader's time
    try:
        return next(csv.reader([line], delimiter=separator or " ", strict=True, skipinitialspace=separator is None))
    except (csv.Error, StopIteration):
        raise UserError(f"{where} reads {shown(line)}, where double quotes do not pair up: {expected}.") from None


def find_column(names: Sequence[str], known: Sequence[str]) -> int | None:
    """Where the first of the known names stands among a header's, None if nowhere; "Image 1" and "image_1" are one."""
    there = [_plain(name) for name in names]
    return next((there.index(name) for name in map(_plain, known) if name in there), None)


def _plain(name: str) -> str:
    return "_".join(name.lower().split())


def shown(text: str) -> str:
    """The beginning of a line or a field, for a message."""
    return repr(text.strip()[:NUM_CHARACTERS_SHOWN])
