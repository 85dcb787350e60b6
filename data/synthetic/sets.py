"""Cross-age faces drawn by program, in the published layouts of all data sets, for a machine without one.

Every random stream is derived from (seed, purpose, person, picture), so a picture's bytes depend neither on the number
of processes nor on the order of drawing.
"""

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data.synthetic.drawing import draw_face, encode_jpeg
from data.synthetic.people import (
    AGES_STREAM,
    LAYOUT_STREAM,
    OLDEST,
    SHOT_STREAM,
    random_stream,
    sample_person,
    sample_shot,
)
from meta import IMAGE_SIZE, UserError
from utils.files import new_folder, written_beside
from utils.worker_processes import signals_held, worker_pool

# First person of each set. A set of ten million people would be needed for two of them to share somebody.
FIRST_PERSON = {"training": 0, "fgnet": 10**7, "morph2": 2 * 10**7, "cacd_vs": 3 * 10**7, "calfw": 4 * 10**7}


@dataclass(frozen=True)
class Picture:
    """One file to be drawn: all that decides its bytes."""

    path: str
    seed: int
    person: int
    number: int  # of the picture among this person's
    age: int
    nuisance: float


cached_person = functools.lru_cache(maxsize=64)(sample_person)


def write_picture(picture: Picture) -> None:
    """Draw one picture and write it."""
    shot = sample_shot(random_stream(picture.seed, SHOT_STREAM, picture.person, picture.number), picture.nuisance)
    image = draw_face(cached_person(picture.seed, picture.person), picture.age, shot)
    Path(picture.path).write_bytes(encode_jpeg(image, shot.jpeg_quality))


def write_pictures(pictures: list[Picture], workers: int, title: str, progress: bool) -> int:
    """Draw all pictures with that many processes; returns how many."""
    if workers < 1:
        raise UserError(f"workers is {workers}, but at least one process has to draw: give 1 or more")
    for parent in sorted({str(Path(picture.path).parent) for picture in pictures}):
        Path(parent).mkdir(parents=True, exist_ok=True)
    quiet = not (progress and sys.stderr.isatty())
    with tqdm(total=len(pictures), desc=title, unit="face", disable=quiet) as bar:
        if workers == 1:
            for picture in pictures:
                write_picture(picture)
                bar.update()
        else:
            with worker_pool(workers) as pool:
                with signals_held():
                    written = pool.map(write_picture, pictures, chunksize=32)
                for _ in written:
                    bar.update()
    return len(pictures)


def at_least(name: str, value: int, smallest: int) -> None:
    """Raises: UserError if a count is too small to make the set."""
    if value < smallest:
        raise UserError(f"{name} is {value}, but this set needs at least {smallest}: give a larger number")


def write_training_set(
    folder: str | os.PathLike,
    num_people: int,
    pictures_per_person: int,
    seed: int,
    *,
    workers: int = 1,
    nuisance: float = 1.0,
    first_person: int = FIRST_PERSON["training"],
    progress: bool = True,
    years_per_person: int | None = None,
) -> int:
    """MS1MV3's layout, one folder per identity: 00000007/00000171_age_39.jpg. Returns the number of files.

    A person's ages are spread over the whole of life, one at random in each of `pictures_per_person` equal spans. With
    `years_per_person` the pictures lie within so many years, which begin at random, so that age hints at who it is.
    """
    at_least("num_people", num_people, 1)
    at_least("pictures_per_person", pictures_per_person, 1)
    years = OLDEST + 1 if years_per_person is None else years_per_person
    at_least("years_per_person", years, 1)
    if years > OLDEST + 1:
        raise UserError(f"years_per_person is {years}, but a life here has {OLDEST + 1}: give a smaller number")
    with new_folder(folder) as partial:
        pictures = []
        for person in range(first_person, first_person + num_people):
            stream = random_stream(seed, AGES_STREAM, person)
            places = (
                stream.permutation(pictures_per_person) + stream.random(pictures_per_person)
            ) / pictures_per_person
            youngest = 0 if years == OLDEST + 1 else int(stream.integers(OLDEST + 2 - years))
            for number, age in enumerate((youngest + places * years).astype(int).tolist()):
                name = f"{person:08d}/{len(pictures):08d}_age_{age:02d}.jpg"
                pictures.append(Picture(str(partial / name), seed, person, number, age, nuisance))
        return write_pictures(pictures, workers, "training set", progress)


def write_fgnet(
    folder: str | os.PathLike,
    num_people: int,
    pictures_per_person: int,
    seed: int,
    *,
    workers: int = 1,
    nuisance: float = 1.0,
    first_person: int = FIRST_PERSON["fgnet"],
    progress: bool = True,
) -> int:
    """FG-NET's layout: 001/001A02.JPG, and 001/001A43a.JPG with 001/001A43b.JPG. Returns the number of files.

    People have between half and one and a half times `pictures_per_person` pictures, at least 2, mostly of their youth.
    """
    at_least("num_people", num_people, 1)
    at_least("pictures_per_person", pictures_per_person, 2)
    with new_folder(folder) as partial:
        pictures = []
        for index in range(num_people):
            person = first_person + index
            stream = random_stream(seed, AGES_STREAM, person)
            lowest, highest = max(2, pictures_per_person // 2), min(100, pictures_per_person * 3 // 2)
            ages: list[int] = []
            for _ in range(int(stream.integers(lowest, max(lowest, highest) + 1))):
                age = min(69, int(stream.gamma(1.3, 14.0)))
                while ages.count(age) == 2:  # the published names know the letters a and b only
                    age = (age + 1) % 70
                ages.append(age)
            ages.sort()
            for number, age in enumerate(ages):
                letter = "" if ages.count(age) == 1 else "ab"[number - ages.index(age)]
                name = f"{index + 1:03d}/{index + 1:03d}A{age:02d}{letter}.JPG"
                pictures.append(Picture(str(partial / name), seed, person, number, age, nuisance))
        return write_pictures(pictures, workers, "FG-NET", progress)


def write_morph2(
    folder: str | os.PathLike,
    num_subjects_small: int,
    num_subjects_large: int,
    seed: int,
    *,
    workers: int = 1,
    nuisance: float = 1.0,
    first_person: int = FIRST_PERSON["morph2"],
    progress: bool = True,
) -> int:
    """MORPH2's layout: {probe,gallery}_{3000,10000}/009055/009055_1M54.JPG. Returns the number of files.

    The youngest picture of a subject is in the gallery, the oldest is the probe; the small setting's subjects and their
    pictures are among the large one's, as in the original. Ages 16 to 77.
    """
    at_least("num_subjects_small", num_subjects_small, 1)
    at_least("num_subjects_large", num_subjects_large, num_subjects_small)
    with new_folder(folder) as partial:
        pictures = []
        subjects = random_stream(seed, LAYOUT_STREAM, first_person).choice(10**6, num_subjects_large, replace=False)
        for index, subject in enumerate(subjects.tolist()):
            person = first_person + index
            stream = random_stream(seed, AGES_STREAM, person)
            youngest = int(stream.integers(16, 56))
            oldest = min(77, youngest + int(stream.integers(2, 23)))
            sex = "M" if cached_person(seed, person).male else "F"
            for setting, included in ((3000, index < num_subjects_small), (10000, True)):
                if included:
                    for number, (part, age) in enumerate((("gallery", youngest), ("probe", oldest))):
                        name = f"{part}_{setting}/{subject:06d}/{subject:06d}_{number}{sex}{age}.JPG"
                        pictures.append(Picture(str(partial / name), seed, person, number, age, nuisance))
        return write_pictures(pictures, workers, "MORPH2", progress)


def pair_people(first: int, num_pairs: int, seed: int) -> tuple[list[int], list[tuple[int, int]]]:
    """People of one fold's genuine pairs, and its impostor pairs: two people of like sex and skin where there are such.

    Impostors picked at random would differ by sex and skin alone; the published lists avoid that too.
    """
    people = list(range(first, first + num_pairs + 1))
    alike = sorted(people, key=lambda p: (cached_person(seed, p).male, cached_person(seed, p).melanin))
    impostors = [(alike[k], alike[k + 1]) for k in range(num_pairs)]
    return people[:num_pairs], impostors


def ten_folds(num_pairs: int, seed: int, first_person: int) -> list[tuple[int, int, bool]]:
    """(person a, person b, genuine) in list order: ten folds, each its genuine then its impostor half.

    No person is in two folds. Raises: UserError if `num_pairs` does not divide into ten such folds.
    """
    if num_pairs < 20 or num_pairs % 20:
        raise UserError(f"num_pairs is {num_pairs}, but ten folds of two equal halves need a multiple of 20: give one")
    half = num_pairs // 20
    rows = []
    for fold in range(10):
        genuine, impostors = pair_people(first_person + fold * (half + 1), half, seed)
        rows += [(person, person, True) for person in genuine] + [(a, b, False) for a, b in impostors]
    return rows


def two_ages(stream: np.random.Generator, ages: tuple[int, int], gaps: tuple[int, int]) -> tuple[int, int]:
    """Two ages (years) within `ages`, apart by `gaps`, both inclusive, in random order."""
    gap = int(stream.integers(gaps[0], gaps[1] + 1))
    young = int(stream.integers(ages[0], ages[1] - gap + 1))
    return (young, young + gap) if stream.random() < 0.5 else (young + gap, young)


def write_cacd_vs(
    folder: str | os.PathLike,
    num_pairs: int,
    seed: int,
    *,
    workers: int = 1,
    nuisance: float = 1.0,
    first_person: int = FIRST_PERSON["cacd_vs"],
    progress: bool = True,
) -> int:
    """CACD-VS's layout: processed_CACDVS_2/0000_0.jpg, txt/CACD_VS_pairs_labels.txt. Gives the number of pictures.

    Both kinds of pairs are 2 to 10 years apart, ages 14 to 62.
    """
    with new_folder(folder) as partial:
        pictures, lines = [], []
        for row, (person_a, person_b, genuine) in enumerate(ten_folds(num_pairs, seed, first_person)):
            ages = two_ages(random_stream(seed, AGES_STREAM, first_person, row), (14, 62), (2, 10))
            names = [f"{row:04d}_{side}.jpg" for side in (0, 1)]
            for side, (person, age) in enumerate(zip((person_a, person_b), ages, strict=True)):
                path = str(partial / "processed_CACDVS_2" / names[side])
                pictures.append(Picture(path, seed, person, 2 * row + side, age, nuisance))
            lines.append(f"{names[0]} {names[1]} {int(genuine)}\n")
        (partial / "txt").mkdir()
        (partial / "txt" / "CACD_VS_pairs_labels.txt").write_text("".join(lines))
        return write_pictures(pictures, workers, "CACD-VS", progress)


def write_calfw(
    folder: str | os.PathLike,
    num_pairs: int,
    seed: int,
    *,
    workers: int = 1,
    nuisance: float = 1.0,
    first_person: int = FIRST_PERSON["calfw"],
    progress: bool = True,
) -> int:
    """CALFW's layout: processed_CALFW_2/P0012_0001.jpg, txts/CALFW_img_pairs_labels.txt. Gives the number of pictures.

    Both kinds of pairs are 15 to 45 years apart, ages 14 to 80.
    """
    with new_folder(folder) as partial:
        pictures, lines = [], []
        counts: dict[int, int] = {}
        for row, (person_a, person_b, genuine) in enumerate(ten_folds(num_pairs, seed, first_person)):
            ages = two_ages(random_stream(seed, AGES_STREAM, first_person, row), (14, OLDEST), (15, 45))
            names = []
            for person, age in zip((person_a, person_b), ages, strict=True):
                counts[person] = counts.get(person, 0) + 1
                names.append(f"P{person - first_person:04d}_{counts[person]:04d}.jpg")
                path = str(partial / "processed_CALFW_2" / names[-1])
                pictures.append(Picture(path, seed, person, counts[person], age, nuisance))
            lines.append(f"{names[0]} {names[1]} {int(genuine)}\n")
        (partial / "txts").mkdir()
        (partial / "txts" / "CALFW_img_pairs_labels.txt").write_text("".join(lines))
        return write_pictures(pictures, workers, "CALFW", progress)


def write_all(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    workers: int = 1,
    num_people: int = 100,
    pictures_per_person: int = 16,
    fgnet_people: int = 40,
    fgnet_pictures_per_person: int = 10,
    morph2_subjects: tuple[int, int] = (60, 150),
    cacd_vs_pairs: int = 200,
    calfw_pairs: int = 300,
    years_per_person: int | None = None,
    nuisance: float = 1.0,
    progress: bool = True,
) -> dict[str, int]:
    """Training set and the four benchmarks under their published folder names; pictures per folder.

    No person is in two of them, and nothing is left behind when it is interrupted.
    Raises: UserError if `root` already holds something.
    """
    common = {"seed": seed, "workers": workers, "nuisance": nuisance, "progress": progress}
    with new_folder(root) as partial:
        return {
            "ms1mv3_256times256_with_age": write_training_set(
                partial / "ms1mv3_256times256_with_age",
                num_people,
                pictures_per_person,
                years_per_person=years_per_person,
                **common,
            ),  # fmt: skip
            "ID_processed_FGNET": write_fgnet(
                partial / "ID_processed_FGNET", fgnet_people, fgnet_pictures_per_person, **common
            ),
            "ID_processed_morph2_2": write_morph2(partial / "ID_processed_morph2_2", *morph2_subjects, **common),
            "CACD_VS": write_cacd_vs(partial / "CACD_VS", cacd_vs_pairs, **common),
            "CALFW": write_calfw(partial / "CALFW", calfw_pairs, **common),
        }


SHEET_MARGIN = 18  # pixels left of and above the pictures, for labels


def contact_sheet(
    path: str | os.PathLike,
    seed: int = 0,
    num_people: int = 8,
    ages: tuple[int, ...] = (1, 6, 12, 18, 28, 40, 52, 65, 78),
) -> None:
    """PNG with a row per person and a column per age, mild nuisance, for looking at."""
    at_least("num_people", num_people, 1)
    at_least("the number of ages", len(ages), 1)
    sheet = Image.new("RGB", (SHEET_MARGIN + IMAGE_SIZE * len(ages), SHEET_MARGIN + IMAGE_SIZE * num_people), "white")
    labels = ImageDraw.Draw(sheet)
    for column, age in enumerate(ages):
        labels.text((SHEET_MARGIN + IMAGE_SIZE * column + 4, 4), f"{age} years", fill="black")
    for row in range(num_people):
        labels.text((3, SHEET_MARGIN + IMAGE_SIZE * row + 4), str(row), fill="black")
        person = sample_person(seed, row)
        for column, age in enumerate(ages):
            shot = sample_shot(random_stream(seed, SHOT_STREAM, row, column), 0.4)
            face = Image.fromarray(draw_face(person, age, shot))
            sheet.paste(face, (SHEET_MARGIN + IMAGE_SIZE * column, SHEET_MARGIN + IMAGE_SIZE * row))
    with written_beside(path) as file:
        sheet.save(file, "PNG")
