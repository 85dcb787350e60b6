"""A training set in a plan: one folder a person, the published names with ages."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from data.finding import find_pictures
from data.releases.aligned_folders import Face, Plan, PointFinder
from data.releases.names import is_plain_name, match_name
from meta import MAX_AGE, UserError

NAMES_FILE = "names.csv"  # of a training set: new name, name in the release


def add_training_set(
    plan: Plan, pictures: Path, pattern: re.Pattern, example: str, find_points: PointFinder | None
) -> None:
    """All pictures whose names hold a person and an age."""
    faces = []
    for path in find_pictures(pictures):
        if not (parts := match_name(plan, pattern, path, example)):
            continue
        if int(parts["age"]) > MAX_AGE or parts["person"].startswith("."):  # a hidden folder would not be seen
            plan.left_out.append((path, f"no age up to {MAX_AGE}, or a name that begins with a dot"))
        elif face := plan.usable(pictures / path, path, find_points):
            faces.append((face, parts["person"], int(parts["age"]), path))
    add_training_faces(plan, sorted(faces, key=lambda entry: (entry[1], entry[3])))


def add_training_faces(plan: Plan, faces: Iterable[tuple[Face, str, int, str]]) -> None:
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
