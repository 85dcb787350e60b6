"""Data sets as their makers release them -> plans for the folders that train.py and test.py read.

Nothing is written here: `release_faces.write_plan` does it. Every function takes the release's folder and either
landmarks (the release's own files, or a table of five points a picture) or `already_aligned`. All of them raise
UserError for a folder, a list or a table that can't be read or isn't of its form.
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from data.alignment.landmarks import read_five_lines, read_point_table, read_pts
from data.faces import is_image_name
from data.pairs import Pair, pairs_by_rule
from data.releases.aligned_folders import Face, Plan, PointFinder, find_below, find_pictures
from data.releases.lists import (
    Subject,
    is_plain_name,
    pair_lines,
    read_agedb_pairs,
    read_calfw_pairs,
    read_morph2_ages,
    read_subjects,
    subject_lines,
)
from meta import BENCHMARKS, MAX_AGE, Benchmark, UserError

FGNET_NAME = re.compile(r"(\d{3})a(\d{2})([ab]?)\.(jpe?g)", re.IGNORECASE | re.ASCII)
MORPH2_NAME = re.compile(r"(\d{1,9})_(\d{1,4})([mf])(\d{1,3})\.(jpe?g)", re.IGNORECASE | re.ASCII)
AGEDB_NAME = re.compile(r"\d+_(?P<person>.+)_(?P<age>\d{1,3})_[mf]\.jpe?g", re.IGNORECASE | re.ASCII)
CACD_NAME = re.compile(r"(?P<age>\d{1,3})_(?P<person>.+)_\d{4}\.jpe?g", re.IGNORECASE | re.ASCII)
MORPH2_FOLDER = BENCHMARKS["morph2"].unpacked_into
MORPH2_SETTINGS = BENCHMARKS["morph2"].subject_counts  # 3,000 and 10,000 subjects
SUBJECTS_FILE = "subjects.csv"
# AgeDB is none of the paper's benchmarks, so no place is published; this one is like CALFW's.
AGEDB_FOLDER = "AgeDB"
AGEDB_PICTURES = "processed_AgeDB"
AGEDB_LIST = "txts/AgeDB_30_img_pairs_labels.txt"
NAMES_FILE = "names.csv"  # of a training set: new name, name in the release


# ------------------------------------------------------------------------------------------------------------ FG-NET


def plan_fgnet(raw: Path, landmarks: Path | None = None, already_aligned: bool = False) -> Plan:
    """FG-NET: images/001A02.JPG with points/001a02.pts -> ID_processed_FGNET/001/001A02.JPG."""
    benchmark = BENCHMARKS["fgnet"]
    plan = Plan(benchmark.title, benchmark.unpacked_into, True, _inputs(raw, landmarks))
    pictures = find_below(raw, "images", directory=True) or raw
    own = None
    if landmarks is None and not already_aligned:
        own = _points_by_stem(_needed_folder(raw, "points"), ".pts", lambda path: read_pts(path, "fgnet"))
    find_points = _point_finder(landmarks, already_aligned, own)
    for name in find_pictures(pictures):
        if parts := _matched(plan, FGNET_NAME, name, "001A02.JPG"):
            identity, age, letter, extension = parts.groups()
            # Upper-case A and extension, lower-case letter: the published form, in which the ages are found.
            target = f"{identity}/{identity}A{age}{letter.lower()}.{extension.upper()}"
            plan.add(pictures / name, name, [target], find_points)
    return plan


# ------------------------------------------------------------------------------------------------------------- MORPH


class Morph2Picture(NamedTuple):
    """A picture of MORPH album 2, by its name or by its name and the table of ages."""

    subject: int
    number: int
    age: int  # years
    name: str  # base name in the published form, 009055_1M54.JPG
    path: str  # below the release's folder


def plan_morph2(
    raw: Path,
    landmarks: Path | None = None,
    already_aligned: bool = False,
    ages: Path | None = None,
    counts: tuple[int, int] = MORPH2_SETTINGS,
    seed: int = 0,
    subjects: Path | None = None,
    training_folder: str = "",
) -> list[Plan]:
    """MORPH album 2 -> ID_processed_morph2_2/{gallery,probe}_{3000,10000}, and perhaps a training set of the others.

    A subject's youngest picture is in the gallery, the oldest of its others is the probe; among pictures of one age it
    is the one with the lowest number. `counts[1]` subjects are drawn by `seed` among those with two pictures or more,
    and the first `counts[0]` of them are the small setting, which is thus part of the large one. The folders keep
    their names whatever the counts. `subjects`, a list as it is written beside the pictures, stands for a draw.
    `ages` is MORPH's CSV: its ages then count, not those in the names. The training set has all subjects that are in
    neither setting.
    """
    plan = Plan(BENCHMARKS["morph2"].title, MORPH2_FOLDER, True, _inputs(raw, landmarks, ages, subjects))
    chosen = read_subjects(subjects, MORPH2_SETTINGS) if subjects else []
    pictures = _morph2_pictures(plan, raw, ages)
    if subjects and not training_folder:  # then no others are needed, nor their landmarks
        wanted = {subject.number for subject in chosen}
        pictures = [picture for picture in pictures if picture.subject in wanted]
    find_points = _point_finder(landmarks, already_aligned, None)
    faces: dict[int, dict[Morph2Picture, Face]] = {}
    for picture in pictures:
        if face := plan.usable(raw / picture.path, picture.path, find_points):
            faces.setdefault(picture.subject, {})[picture] = face
    chosen = chosen or draw_subjects(faces, counts, seed)
    _add_subjects(plan, chosen, faces)
    plan.lists[SUBJECTS_FILE] = subject_lines(chosen)
    if not training_folder:
        return [plan]
    taken = {subject.number for subject in chosen}
    rest = [(face, f"{picture.subject:06d}", picture.age, picture.path)
            for subject in sorted(faces.keys() - taken) for picture, face in faces[subject].items()]  # fmt: skip
    training = Plan(f"{plan.title}, other subjects", training_folder, True, plan.inputs, left_out=list(plan.left_out))
    _add_training_faces(training, rest)
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


def _morph2_pictures(plan: Plan, raw: Path, ages: Path | None) -> list[Morph2Picture]:
    """The release's pictures; notes of those whose names, or ages in the table, are not as they should be."""
    table = read_morph2_ages(ages) if ages else None
    pictures, num_different = [], 0
    for path in find_pictures(raw):
        if not (parts := _matched(plan, MORPH2_NAME, path, "009055_1M54.JPG")):
            continue
        subject, number, sex, age, extension = parts.groups()
        years = int(age) if table is None else table.get(PurePosixPath(path).name.lower())
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


# ------------------------------------------------------------------------------------------------------------- pairs


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
    plan = Plan(benchmark.title, benchmark.unpacked_into, False, _inputs(raw, landmarks, pairs))
    own, pictures = None, None
    if landmarks is None and not already_aligned:
        points = _needed_folder(raw, "CA_landmarks")
        own = _points_by_stem(points, "_5loc_attri.txt", read_five_lines)
        # The release has "aligned images" too, aligned in another way; the landmarks are of those beside them.
        pictures = find_below(points.parent, "images", directory=True)
    pictures = pictures or find_below(raw, "images", directory=True) or raw
    find_points = _point_finder(landmarks, already_aligned, own)
    _add_pairs(plan, pictures, read_calfw_pairs(pairs), *_places(benchmark), find_points)
    return plan


def plan_cacd_vs(raw: Path, landmarks: Path | None = None, already_aligned: bool = False) -> Plan:
    """CACD-VS: NNNN_0.jpg and NNNN_1.jpg -> CACD_VS/processed_CACDVS_2 and the list of 4,000 pairs by its rule."""
    benchmark = BENCHMARKS["cacd_vs"]
    plan = Plan(benchmark.title, benchmark.unpacked_into, False, _inputs(raw, landmarks))
    find_points = _point_finder(landmarks, already_aligned, None)
    _add_pairs(plan, raw, pairs_by_rule(benchmark), *_places(benchmark), find_points)
    return plan


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
    own = None if landmarks or already_aligned else _points_beside(pictures)
    find_points = _point_finder(landmarks, already_aligned, own)
    inputs, plans = _inputs(raw, landmarks, pairs), []
    if pairs is not None:
        plan = Plan("AgeDB, 30 years", AGEDB_FOLDER, False, inputs)
        _add_pairs(plan, pictures, read_agedb_pairs(pairs), AGEDB_PICTURES, AGEDB_LIST, find_points)
        plans.append(plan)
    if training_folder:
        plan = Plan("AgeDB for training", training_folder, True, inputs)
        _add_training_set(plan, pictures, AGEDB_NAME, "0_MariaCallas_35_f.jpg", find_points)
        plans.append(plan)
    if len(plans) == 2:
        plans[1].notes.append("it has the people of AgeDB's protocol: a model trained on it can't be tested there")
    return plans


def plan_cacd(
    raw: Path, landmarks: Path | None = None, already_aligned: bool = False, training_folder: str = "CACD_with_age"
) -> Plan:
    """CACD: 53_Robin_Williams_0001.jpg -> a training set, one folder a person."""
    plan = Plan("CACD for training", training_folder, True, _inputs(raw, landmarks))
    find_points = _point_finder(landmarks, already_aligned, None)
    _add_training_set(plan, raw, CACD_NAME, "53_Robin_Williams_0001.jpg", find_points)
    return plan


def _places(benchmark: Benchmark) -> tuple[str, str]:
    """(folder of pictures, pair list) below the benchmark's own folder."""
    top = PurePosixPath(benchmark.unpacked_into)
    return tuple(str(PurePosixPath(path).relative_to(top)) for path in (benchmark.folders[0], benchmark.pair_lists[0]))


def _add_pairs(
    plan: Plan, pictures: Path, pairs: list[Pair], folder: str, list_name: str, find_points: PointFinder | None
) -> None:
    """The pictures that the pairs name, each once, and the list; a name in it may lack its extension.

    Folders before a name have to be those of its picture; in the new list all names stand without.
    """
    by_name, by_stem = _pictures_by_name(pictures)
    new_names: dict[str, str] = {}
    found: set[str] = set()
    for name in dict.fromkeys(name for pair in pairs for name in (pair.name_a, pair.name_b)):
        folders, _, base = name.rpartition("/")
        stem, suffix = os.path.splitext(base) if is_image_name(base) else (base, "")
        path = by_name.get(base.lower()) or by_stem.get(stem.lower())
        if path is not None and not _lies_in(folders, pictures / path):
            path = None
        if path is None:
            new_names[name] = f"{name.removesuffix(suffix)}{suffix or '.jpg'}"
            plan.left_out.append((name, "in the pair list, but no picture has this name"))
        else:
            new_names[name] = stem + (suffix or PurePosixPath(path).suffix)
            if path not in found:
                plan.add(pictures / path, path, [f"{folder}/{new_names[name]}"], find_points)
            found.add(path)
    plan.lists[list_name] = pair_lines(Pair(new_names[a], new_names[b], genuine) for a, b, genuine in pairs)
    if len(found) < len(by_name):
        plan.notes.append(f"{len(by_name) - len(found):,} pictures of the release are in no pair and are not taken")


def _lies_in(folders: str, picture: Path) -> bool:
    """Whether these are the last of the folders that the picture lies in."""
    return f"/{picture.parent.absolute().as_posix()}".lower().endswith(f"/{folders}".lower()) if folders else True


def _pictures_by_name(pictures: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Paths below `pictures` by base name, and by base name without extension, both in lower case."""
    by_name: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for path in find_pictures(pictures):
        name = PurePosixPath(path).name.lower()
        if (other := by_name.setdefault(name, path)) != path:
            raise UserError(f"{other!r} and {path!r} below {str(pictures)!r} have one name, and the pair list could "
                            "mean either: give the folder of one of them.")  # fmt: skip
        by_stem.setdefault(PurePosixPath(name).stem, path)
    return by_name, by_stem


# ------------------------------------------------------------------------------------------------------ training sets


def _add_training_set(
    plan: Plan, pictures: Path, pattern: re.Pattern, example: str, find_points: PointFinder | None
) -> None:
    """All pictures whose names hold a person and an age."""
    faces = []
    for path in find_pictures(pictures):
        if not (parts := _matched(plan, pattern, path, example)):
            continue
        if int(parts["age"]) > MAX_AGE or parts["person"].startswith("."):  # a hidden folder would not be seen
            plan.left_out.append((path, f"no age up to {MAX_AGE}, or a name that begins with a dot"))
        elif face := plan.usable(pictures / path, path, find_points):
            faces.append((face, parts["person"], int(parts["age"]), path))
    _add_training_faces(plan, sorted(faces, key=lambda entry: (entry[1], entry[3])))


def _add_training_faces(plan: Plan, faces: Iterable[tuple[Face, str, int, str]]) -> None:
    """(picture, person, age, name in the release) -> PERSON/NNNNNNNN_age_AA.jpg, the published form."""
    if not is_plain_name(plan.folder):
        raise UserError(f"--training-folder {plan.folder!r} is no name of a folder below --output: give a plain name.")
    names = [("name", "original")]
    for number, (face, person, age, original) in enumerate(faces):
        target = f"{person}/{number:08d}_age_{age:02d}.jpg"
        plan.faces.append(replace(face, targets=(target,)))
        names.append((target, original))
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(names)
    plan.lists[NAMES_FILE] = buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------- landmarks


def _point_finder(landmarks: Path | None, already_aligned: bool, own: PointFinder | None) -> PointFinder | None:
    """Where the points come from; None for pictures that are aligned already."""
    if landmarks is not None and already_aligned:
        raise UserError("--landmarks and --already-aligned contradict each other: give one of them.")
    if already_aligned:
        return None
    if landmarks is not None:
        return read_point_table(landmarks).find
    if own is None:
        raise UserError("This release has no landmarks of its own: give --landmarks FILE with five points a picture, "
                        "or --already-aligned.")  # fmt: skip
    return own


def _points_by_stem(folder: Path, ending: str, read: Callable[[Path], np.ndarray]) -> PointFinder:
    """Landmark files in a folder of their own, found by the picture's name without extension, in any case."""
    files = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ending.lower())}

    def find(name: str) -> np.ndarray | None:
        path = files.get(PurePosixPath(name).stem.lower() + ending.lower())
        return None if path is None else read(path)

    return find


def _points_beside(pictures: Path) -> PointFinder:
    """Files of 68 points in iBUG's order beside the pictures."""

    def find(name: str) -> np.ndarray | None:
        path = (pictures / name).with_suffix(".pts")
        return read_pts(path, "ibug") if path.is_file() else None

    return find


# -------------------------------------------------------------------------------------------------------------- names


def _inputs(*paths: Path | None) -> list[Path]:
    return [path for path in paths if path is not None]


def _needed_folder(raw: Path, name: str) -> Path:
    folder = find_below(raw, name, directory=True)
    if folder is None:
        raise UserError(f"{str(raw)!r} has no folder {name!r} of landmarks: give the folder of the whole release, or "
                        "--landmarks FILE, or --already-aligned.")  # fmt: skip
    return folder


def _matched(plan: Plan, pattern: re.Pattern, path: str, example: str) -> re.Match | None:
    """The parts of a picture's name, or None after noting that it is left out."""
    parts = pattern.fullmatch(PurePosixPath(path).name)
    if parts is None:
        plan.left_out.append((path, f"its name is not like {example}"))
    return parts
