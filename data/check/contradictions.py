"""Subjects of MORPH album 2 whose pictures contradict each other: birth dates, sex, race, ages that run backwards.

The release is known for them (Albiero et al., WACV 2020, published lists of cleaned subjects). Published figures are
of the set as it is, so nothing is mended here: contradictions are found, counted and listed.
"""

import csv
import datetime
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data.alignment.landmarks import csv_columns, csv_rows
from data.releases.names import is_whole_number, unexpected_line

MORPH2_NAME = re.compile(r"(\d{1,9})_(\d{1,4})([mf])(\d{1,3})\.(jpe?g)", re.IGNORECASE | re.ASCII)
CONTRADICTIONS_FILE = "contradictions.csv"
BACKWARDS = "age runs backwards"
COLUMNS = ("subject", "what", "pictures")
EXPECTED = f"a first line {','.join(COLUMNS)} and then a line for each contradiction are expected"
DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})|(\d{4})-(\d{1,2})-(\d{1,2})", re.ASCII)  # month/day/year, or ISO


class Described(NamedTuple):
    """A picture of a subject, by its name or by its name and MORPH's table; "" and None where that says nothing."""

    subject: int
    number: int
    age: int  # years
    name: str  # base name
    sex: str  # "M" or "F"
    birth_date: str = ""
    race: str = ""
    taken: datetime.date | None = None


class Contradiction(NamedTuple):
    """What one subject's pictures do not agree on."""

    subject: int
    what: str  # a key of KINDS
    pictures: str  # values and the pictures that have them


def described_by_name(name: str) -> Described | None:
    """What a base name such as 009055_1M54.JPG says of its picture; None where it is no such name."""
    parts = MORPH2_NAME.fullmatch(name)
    if parts is None:
        return None
    subject, number, sex, age, _ = parts.groups()
    return Described(int(subject), int(number), int(age), name, sex.upper())


def parse_date(text: str) -> datetime.date | None:
    """A day such as 4/24/1951, 4/24/51 or 1951-04-24, perhaps with a time behind it; None for anything else.

    Of two digits up to 10 are of this century: the album's pictures end in 2007, its youngest people are 16.
    """
    parts = DATE.match(text.strip())
    if parts is None:
        return None
    month, day, year, *iso = parts.groups()
    if year is None:
        year, month, day = iso
    full = int(year) if len(year) == 4 else int(year) + (2000 if int(year) <= 10 else 1900)
    try:
        return datetime.date(full, int(month), int(day))
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------------------------- finding


def find_contradictions(pictures: Iterable[Described]) -> list[Contradiction]:
    """The contradictions of each subject, one of each kind at most, by subject."""
    by_subject: dict[int, list[Described]] = {}
    for picture in pictures:
        by_subject.setdefault(picture.subject, []).append(picture)
    return [
        Contradiction(subject, what, found)
        for subject in sorted(by_subject)
        for what, find in KINDS.items()
        if (found := find(by_subject[subject]))
    ]


def _differs(value_of: Callable[[Described], str]) -> Callable[[Sequence[Described]], str]:
    """Finds values that differ between the pictures that have one: each value and the first picture with it."""

    def find(pictures: Sequence[Described]) -> str:
        first: dict[str, str] = {}
        for picture in sorted(pictures):
            if value := value_of(picture):
                first.setdefault(value, picture.name)
        return "; ".join(f"{value} in {name}" for value, name in first.items()) if len(first) > 1 else ""

    return find


def _ages_backwards(pictures: Sequence[Described]) -> str:
    """The first picture that is younger than an earlier one: by the days where all are known, else by the numbers."""
    has_days = all(picture.taken is not None for picture in pictures)
    order = [(picture.taken if has_days else picture.number, picture) for picture in pictures]
    oldest = None
    for when, picture in sorted(order, key=lambda one: (one[0], one[1].age)):
        if oldest is not None and picture.age < oldest[1].age and when != oldest[0]:
            by = f"on {oldest[0]} and {when}" if has_days else "by their numbers"
            return f"{oldest[1].age} in {oldest[1].name}, then {picture.age} in {picture.name}, {by}"
        if oldest is None or picture.age > oldest[1].age:
            oldest = when, picture
    return ""


KINDS: dict[str, Callable[[Sequence[Described]], str]] = {
    "birth date": _differs(lambda picture: picture.birth_date),
    "sex": _differs(lambda picture: picture.sex),
    "race": _differs(lambda picture: picture.race),
    BACKWARDS: _ages_backwards,
}


def in_words(found: Sequence[Contradiction]) -> str:
    """How many subjects, and how many by each kind."""
    kinds = Counter(one.what for one in found)
    counted = ", ".join(f"{what} {kinds[what]:,}" for what in KINDS if kinds[what])
    return f"{len({one.subject for one in found}):,} subjects contradict themselves ({counted})"


# ------------------------------------------------------------------------------------------------------------ the list


def contradiction_lines(found: Iterable[Contradiction]) -> str:
    """The text of a CSV of contradictions."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((f"{one.subject:06d}", one.what, one.pictures) for one in found)
    return buffer.getvalue()


def read_contradictions(path: Path) -> list[Contradiction]:
    """Those of such a CSV.

    Raises:
        UserError: for a file that can't be read, lacks a column, or has a line of another form.
    """
    found: list[Contradiction] = []
    places: list[int] = []
    for where, cells in csv_rows(path, "list of contradictions", EXPECTED):
        if not places:
            places = csv_columns(where, cells, COLUMNS, EXPECTED)
            continue
        subject, what, pictures = (cells[place] if place < len(cells) else "" for place in places)
        if not is_whole_number(subject) or what not in KINDS:
            raise unexpected_line(where, ",".join(cells), f"{EXPECTED}, what is one of {', '.join(KINDS)}")
        found.append(Contradiction(int(subject), what, pictures))
    return found
