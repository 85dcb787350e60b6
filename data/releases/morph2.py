"""MORPH album 2 as released -> probe and gallery folders, and perhaps a training set of the other subjects."""

import csv
import hashlib
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, NamedTuple

from data.alignment.landmarks import csv_columns, csv_rows
from data.check.contradictions import (
    CONTRADICTIONS_FILE,
    MORPH2_NAME,
    Described,
    contradiction_lines,
    described_by_name,
    find_contradictions,
    in_words,
    parse_date,
)
from data.finding import find_pictures
from data.releases.aligned_folders import Face, Plan
from data.releases.flags import Align, check_folder_name
from data.releases.names import (
    NUM_CHARACTERS_SHOWN,
    is_plain_name,
    is_whole_number,
    match_name,
    unexpected_line,
)
from data.releases.points import point_finder
from data.releases.training_sets import add_training_faces
from meta import BENCHMARKS, MAX_AGE, MIN_AGE, UserError
from utils.cli import Needs, Without, bounded, check_ascending, input_file

MORPH2_FOLDER = BENCHMARKS["morph2"].unpacked_into
MORPH2_SETTINGS = BENCHMARKS["morph2"].subject_counts  # 3,000 and 10,000 subjects
SUBJECTS_FILE = "subjects.csv"
SUBJECT_COLUMNS = ("subject", "gallery", "probe", "setting")
Contradictions = Literal["error", "keep", "drop"]
EXPECTED_MORPH2 = "the columns photo and age of morph_2008_nonCommercial.csv are expected"
EXPECTED_SUBJECTS = f"a first line {','.join(SUBJECT_COLUMNS)} and then a line for each subject are expected"


class Morph2Picture(NamedTuple):
    """A picture of MORPH album 2, by its name or by its name and the table of ages."""

    subject: int
    number: int
    age: int  # years
    name: str  # base name in the published form, 009055_1M54.JPG
    path: str  # below the release's folder


class TableRow(NamedTuple):
    """What MORPH's CSV says of one picture; "" where it has no such column."""

    age: int  # years
    dob: str = ""
    doa: str = ""  # the day of the picture
    race: str = ""
    gender: str = ""


class Subject(NamedTuple):
    """A subject of the probe and gallery protocol: base names of two pictures, and the smallest setting it is in."""

    number: int
    gallery: str
    probe: str
    setting: int


def plan_morph2(
    raw: Path,
    landmarks: Path | None = None,
    already_aligned: bool = False,
    *,
    ages: Path | None = None,
    counts: tuple[int, int] = MORPH2_SETTINGS,
    seed: int = 0,
    subjects: Path | None = None,
    training_folder: str = "",
    contradictions: Contradictions = "keep",
) -> list[Plan]:
    """MORPH album 2 -> ID_processed_morph2_2/{gallery,probe}_{3000,10000}, and perhaps a training set of the others.

    A subject's youngest picture is in the gallery, the oldest of its others is the probe; among pictures of one age it
    is the one with the lowest number. `counts[1]` subjects are drawn by `seed` among those with two pictures or more,
    and the first `counts[0]` of them are the small setting, which is thus part of the large one. The folders keep
    their names whatever the counts. `subjects`, a list as it is written beside the pictures, stands for a draw.
    `ages` is MORPH's CSV: its ages then count, not those in the names. The training set has all subjects that are in
    neither setting. `contradictions` says what becomes of subjects whose pictures contradict each other: they are
    taken as published, left out before the draw, or an error.
    """
    plan = Plan(BENCHMARKS["morph2"].title, MORPH2_FOLDER, True, [raw, landmarks, ages, subjects])
    chosen = read_subjects(subjects, MORPH2_SETTINGS) if subjects else []
    table = read_morph2_table(ages) if ages else None
    pictures = _morph2_pictures(plan, raw, table, ages)
    if subjects and not training_folder:  # then no others are needed, nor their landmarks
        wanted = {subject.number for subject in chosen}
        pictures = [picture for picture in pictures if picture.subject in wanted]
    dropped = _settle_contradictions(plan, pictures, table, contradictions)
    pictures = [picture for picture in pictures if picture.subject not in dropped]
    chosen = [subject for subject in chosen if subject.number not in dropped]
    find_points = point_finder(landmarks, already_aligned, None)
    faces: dict[int, dict[Morph2Picture, Face]] = {}
    for picture in pictures:
        if face := plan.usable(raw / picture.path, picture.path, find_points):
            faces.setdefault(picture.subject, {})[picture] = face
    chosen = chosen if subjects else draw_subjects(faces, counts, seed)
    _add_subjects(plan, chosen, faces)
    plan.lists[SUBJECTS_FILE] = subject_lines(chosen)
    if not training_folder:
        return [plan]
    taken = {subject.number for subject in chosen}
    rest = [(face, f"{picture.subject:06d}", picture.age, picture.path)
            for subject in sorted(faces.keys() - taken) for picture, face in faces[subject].items()]  # fmt: skip
    training = Plan(f"{plan.title}, other subjects", training_folder, True, plan.inputs, left_out=list(plan.left_out))
    add_training_faces(training, rest)
    return [plan, training]


def draw_subjects(pictures: dict[int, Collection[Morph2Picture]], counts: tuple[int, int], seed: int) -> list[Subject]:
    """The subjects of both settings, in the order of the draw: the small setting's come first.

    Drawn by sorting SHA-256 hashes of seed and subject: the same everywhere and for all time, which no library's
    random generator promises.

    Raises:
        UserError: where fewer subjects than `counts[1]` have two pictures.
    """
    able = [subject for subject, theirs in pictures.items() if len(theirs) > 1]
    if len(able) < counts[1] or not 0 < counts[0] <= counts[1]:
        raise UserError(
            f"{len(able):,} of {len(pictures):,} subjects have two pictures that can be used, and {counts[0]:,} and "
            f"{counts[1]:,} are to be drawn: give smaller --counts, the smaller one first, or all of the release."
        )
    able.sort(key=lambda subject: hashlib.sha256(f"{seed}/{subject}".encode()).digest())
    chosen = []
    for place, subject in enumerate(able[: counts[1]]):
        gallery, probe = youngest_and_oldest(pictures[subject])
        setting = MORPH2_SETTINGS[0] if place < counts[0] else MORPH2_SETTINGS[1]
        chosen.append(Subject(subject, gallery.name, probe.name, setting))
    return chosen


def youngest_and_oldest(pictures: Collection[Morph2Picture]) -> tuple[Morph2Picture, Morph2Picture]:
    """Of two pictures of a subject or more the youngest, and the oldest of the others; ties: the lowest number."""
    youngest = min(pictures, key=lambda picture: (picture.age, picture.number))
    others = [picture for picture in pictures if picture is not youngest]
    return youngest, min(others, key=lambda picture: (-picture.age, picture.number))


def _morph2_pictures(
    plan: Plan, raw: Path, table: dict[str, TableRow] | None, ages: Path | None
) -> list[Morph2Picture]:
    """The release's pictures; notes of those whose names, or ages in the table, are not as they should be."""
    pictures, num_different = [], 0
    for path in find_pictures(raw):
        if not (parts := match_name(plan, MORPH2_NAME, path, "009055_1M54.JPG")):
            continue
        subject, number, sex, age, extension = parts.groups()
        row = None if table is None else table.get(_base_name(path))
        years = int(age) if table is None else row and row.age
        if years is None or years > MAX_AGE:
            plan.left_out.append((path, f"no age up to {MAX_AGE}" if table is None else f"not in {str(ages)!r}"))
            continue
        num_different += years != int(age)
        name = f"{subject}_{number}{sex.upper()}{years:02d}.{extension.upper()}"
        pictures.append(Morph2Picture(int(subject), int(number), years, name, path))
    if num_different:
        plan.notes.append(f"{num_different:,} pictures have another age in the table than in their names; the table's "
                          "counts and stands in the new names")  # fmt: skip
    return pictures


def _settle_contradictions(
    plan: Plan, pictures: list[Morph2Picture], table: dict[str, TableRow] | None, contradictions: Contradictions
) -> set[int]:
    """The subjects to leave out; contradictions are noted and listed in CONTRADICTIONS_FILE.

    What the table says counts before what is in a name.

    Raises:
        UserError: there are some, and they are to be an error.
    """
    described: list[Described] = []
    for picture in pictures:
        known = described_by_name(picture.name)
        if table is not None:
            row = table[_base_name(picture.path)]
            birth_date = parse_date(row.dob)
            known = known._replace(
                birth_date=row.dob if birth_date is None else birth_date.isoformat(), race=row.race,
                taken=parse_date(row.doa), sex=row.gender[:1].upper() or known.sex,
            )  # fmt: skip
        described.append(known)
    found = find_contradictions(described)
    if not found:
        return set()
    if contradictions == "error":
        first = found[0]
        raise UserError(f"{plan.title}: {in_words(found)}, the first is {first.subject:06d}, {first.what}: "
                        f"{first.pictures}; give --contradictions keep to take them as published, or drop to leave "
                        "them out.")  # fmt: skip
    plan.lists[CONTRADICTIONS_FILE] = contradiction_lines(found)
    listed = f"{in_words(found)}, listed in {plan.folder}/{CONTRADICTIONS_FILE}"
    if contradictions == "keep":
        plan.notes.append(f"{listed}; they are taken as published, --contradictions drop leaves them out")
        return set()
    dropped = {one.subject for one in found}
    count = sum(picture.subject in dropped for picture in pictures)
    plan.notes.append(f"{listed}; they are left out with their {count:,} pictures, so figures are not those of the "
                      "published set")  # fmt: skip
    return dropped


def _add_subjects(plan: Plan, chosen: list[Subject], faces: dict[int, dict[Morph2Picture, Face]]) -> None:
    small, large = MORPH2_SETTINGS
    for subject in chosen:
        by_name = {picture.name.lower(): face for picture, face in faces.get(subject.number, {}).items()}
        for part, name in (("gallery", subject.gallery), ("probe", subject.probe)):
            settings = (small, large) if subject.setting == small else (large,)
            if (face := by_name.get(name.lower())) is None:
                plan.left_out.append((name, "in the list of subjects, but no picture that can be used"))
            else:
                targets = tuple(f"{part}_{setting}/{subject.number:06d}/{name}" for setting in settings)
                plan.faces.append(replace(face, targets=targets))


def _base_name(path: str) -> str:
    """By which the table knows a picture."""
    return PurePosixPath(path).name.lower()


def read_morph2_table(path: str | Path) -> dict[str, TableRow]:
    """What MORPH's CSV says of each picture, by its lower-case base name.

    Raises:
        UserError: for a file that can't be read, lacks a column, or names a picture with two ages.
    """
    rows: dict[str, TableRow] = {}
    places: list[int] = []
    others: dict[str, int] = {}
    for where, cells in csv_rows(Path(path), "table of ages", EXPECTED_MORPH2):
        if not places:
            places = csv_columns(where, cells, ("photo", "age"), EXPECTED_MORPH2)
            names = [cell.lower() for cell in cells]
            others = {name: names.index(name) for name in TableRow._fields[1:] if name in names}
            continue
        photo, age = (cells[place] if place < len(cells) else "" for place in places)
        name = photo.replace("\\", "/").rpartition("/")[2].lower()
        if not name or not is_whole_number(age) or not MIN_AGE <= int(age) <= MAX_AGE:
            raise unexpected_line(where, ",".join(cells), f"{EXPECTED_MORPH2}, an age from {MIN_AGE} to {MAX_AGE}")
        found = {name: cells[place] for name, place in others.items() if place < len(cells) and cells[place] != "NULL"}
        if rows.setdefault(name, TableRow(int(age), **found)).age != int(age):
            raise UserError(f"{where}, gives {name[:NUM_CHARACTERS_SHOWN]!r} the age {age}, and a line before "
                            f"{rows[name].age}: keep the right one.")  # fmt: skip
    if not rows:
        raise UserError(f"The table of ages {str(path)!r} holds no pictures: {EXPECTED_MORPH2}.")
    return rows


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
            raise unexpected_line(where, ",".join(cells), f"{EXPECTED_SUBJECTS}, the setting one of {list(settings)}")
        if int(number) in subjects:
            raise UserError(f"{where}, has the subject {int(number)} again: leave one of the lines out.")
        subjects[int(number)] = Subject(int(number), gallery, probe, int(setting))
    if not subjects:
        raise UserError(f"The list of subjects {str(path)!r} is empty: {EXPECTED_SUBJECTS}.")
    return list(subjects.values())


@dataclass(frozen=True)
class AlignMorph2(Align):
    """MORPH album 2 -> gallery (youngest picture) and probe (oldest) of 3,000 and 10,000 subjects."""

    ages: Path | None = input_file()
    """morph_2008_nonCommercial.csv: its ages count, not those in the names."""
    counts: tuple[int, int] = bounded(BENCHMARKS["morph2"].subject_counts, low=1)
    """Subjects of the small and of the large setting; the small one is part of the large one."""
    seed: int = 0
    """Decides which subjects are drawn."""
    subjects: Path | None = input_file()
    """A subjects.csv that this command wrote: the same subjects and pictures again, nothing drawn."""
    training_folder: str = ""
    """Name of a folder below --output for the pictures of all subjects that are in neither setting."""
    contradictions: Contradictions = "keep"
    """Subjects whose pictures differ in birth date, sex or race (by --ages), or whose ages run backwards: keep takes
    them as published, drop leaves them out, error stops. They are listed in contradictions.csv."""

    NEEDS: ClassVar[Needs] = Align.NEEDS | dict.fromkeys(
        ("counts", "seed"), (Without("subjects", why="which says itself who is in which setting"),)
    )

    def plans(self) -> list[Plan]:
        check_ascending("counts", self.counts)
        check_folder_name(self.training_folder)
        return plan_morph2(self.raw, self.landmarks, self.already_aligned, ages=self.ages, counts=self.counts,
                           seed=self.seed, subjects=self.subjects, training_folder=self.training_folder,
                           contradictions=self.contradictions)  # fmt: skip
