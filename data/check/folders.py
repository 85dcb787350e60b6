"""The doctor's look at sets with a folder an identity: training sets, FG-NET, MORPH2."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.check.findings import MAX_EXAMPLES, OTHER_COUNT, Visit
from data.check.image_scan import Examined, equal_groups
from data.faces import FaceIndex, index_identity_folders
from data.filenames import parse_age
from data.layout import layout_faults, packed
from meta import FILENAME_PATTERNS, Benchmark, FilenamePattern, TrainingSet, UserError

NUM_NAMED_COPIES = 10  # of one picture


def check_training_set(visit: Visit, training: TrainingSet) -> None:
    name, folder = training.name, visit.root / training.folder
    if not folder.is_dir():
        tell_no_folder(visit, name, folder, "", f"{training.how_to_get}; see {training.source}")
        return
    faces = _index(visit, name, folder)
    if faces is None:
        return
    _tell_counts(visit, name, faces, (training.num_identities, training.num_images))
    _tell_ages(visit, name, faces, FILENAME_PATTERNS[training.pattern], is_training=True)
    # Among millions of pictures from the web some stand under two names: a note.
    _tell_copies(visit, name, _Sides([faces], [visit.examine(name, faces)]), is_training=True)


def check_identity_benchmark(visit: Visit, benchmark: Benchmark) -> None:
    """FG-NET: every picture is compared with every other."""
    name, folder = benchmark.name, visit.root / benchmark.folders[0]
    if not folder.is_dir():
        tell_missing(visit, benchmark, folder)
        return
    faces = _index(visit, name, folder, benchmark.align_command)
    if faces is None:
        return
    _tell_counts(visit, name, faces, (benchmark.num_identities, benchmark.num_images))
    _tell_ages(visit, name, faces, FILENAME_PATTERNS[benchmark.pattern])
    single = np.flatnonzero(np.bincount(faces.identities) == 1)
    if len(single):
        what = f"{len(single):,} identities have one picture"
        advice = "nothing can find it, so leave-one-out counts it as a miss: add pictures, or remove it"
        visit.note(name, what, advice, (faces.identity_names[i] for i in single))
    _tell_copies(visit, name, _Sides([faces], [visit.examine(name, faces)]))


def check_probe_gallery(visit: Visit, benchmark: Benchmark) -> None:
    """MORPH2: in each of its settings one probe and one gallery picture a subject."""
    for count in benchmark.subject_counts:
        name = f"{benchmark.name}_{count}"
        folders = [visit.root / folder for folder in benchmark.folders if folder.endswith(f"_{count}")]
        lost = [folder for folder in folders if not folder.is_dir()]
        if len(lost) == len(folders):
            tell_missing(visit, benchmark, lost[0], name)
        elif lost:
            what = f"there is no folder {str(lost[0])!r}, the other side of this set"
            visit.wrong(name, what, f"get {benchmark.source}")
        else:
            _check_sides(visit, name, folders, FILENAME_PATTERNS[benchmark.pattern], count, benchmark.align_command)


def tell_missing(visit: Visit, benchmark: Benchmark, path: Path, name: str = "") -> None:
    advice = f"get {benchmark.source} and unpack it into {str(visit.root / benchmark.unpacked_into)!r}"
    tell_no_folder(visit, name or benchmark.name, path, f" ({benchmark.notes})", advice)


def tell_no_folder(visit: Visit, name: str, folder: Path, notes: str, advice: str) -> None:
    archive = packed(folder)
    if archive is None:
        visit.missing(name, f"there is no folder {str(folder)!r}{notes}", advice)
    else:
        what = f"there is no folder {str(folder)!r}, but its archive {archive!r} is there{notes}"
        visit.missing(name, what, "unpack it, so that the folder is there")


def _index(visit: Visit, name: str, folder: Path, align_command: str = "") -> FaceIndex | None:
    """The index of identity folders after a look at their layout; None where there is nothing to go on with."""
    looking = f"{name}: looking into folders"
    for fault in layout_faults(folder, repr(str(folder)), align_command, visit.progress, looking):
        visit.tell(name, "wrong" if fault.is_wrong else "note", fault.what, fault.advice, fault.examples)
    try:
        faces = index_identity_folders(folder, None, what=f"{name} images", progress=visit.progress)
    except UserError as error:
        visit.wrong(name, str(error))
        return None
    visit.people.setdefault(name, set()).update(faces.identity_names)
    return faces


def _tell_counts(visit: Visit, name: str, faces: FaceIndex, published: tuple[int, int]) -> None:
    counts = (faces.num_identities, len(faces))
    where = os.path.basename(faces.root)
    visit.ok(name, f"{where}: {_counted(counts)}")
    if any(published) and counts != published:
        visit.note(name, f"{where}: the published set has {_counted(published)}", OTHER_COUNT)


def _counted(counts: tuple[int, int]) -> str:
    return f"{counts[0]:,} identities, {counts[1]:,} images"


# ------------------------------------------------------------------------------------------------------------ ages


def _tell_ages(visit: Visit, name: str, faces: FaceIndex, pattern: FilenamePattern, is_training: bool = False) -> None:
    ages, without = Counter(), []
    for i in range(len(faces)):
        try:
            ages[parse_age(faces.name(i), pattern)] += 1
        except UserError:
            if len(without) < MAX_EXAMPLES:
                without.append(faces.name(i))
    where, num_without = os.path.basename(faces.root), len(faces) - sum(ages.values())
    if ages:
        visit.ok(name, f"{where}: ages {min(ages)} to {max(ages)}")
    if is_training and not ages:
        advice = f"rename the files as {pattern.example}, or make a table of ages: python prepare.py ages --help"
        visit.note(name, f"{where}: no file name holds an age, which training needs", advice, without)
    elif without:
        what = f"{where}: {num_without:,} of {len(faces):,} file names hold no age, or none from 0 to 120"
        visit.wrong(name, what, f"rename them as {pattern.example}, or leave them out", without)


def _ages_by_subject(side: FaceIndex, pattern: FilenamePattern, choose: Callable[[int, int], int]) -> dict[str, int]:
    """The age of each subject whose file names hold one, of several pictures the chosen one's."""
    ages: dict[str, int] = {}
    for i in range(len(side)):
        try:
            age = parse_age(side.name(i), pattern)
        except UserError:  # told by _tell_ages
            continue
        subject = side.identity_names[side.identities[i]]
        ages[subject] = choose(ages.get(subject, age), age)
    return ages


# ---------------------------------------------------------------------------------------------- probes and gallery


def _check_sides(
    visit: Visit, name: str, folders: list[Path], pattern: FilenamePattern, count: int, align_command: str
) -> None:
    sides = [_index(visit, name, folder, align_command) for folder in folders]
    if None in sides:
        return
    for side in sides:
        _tell_counts(visit, name, side, (count, count))
        _tell_ages(visit, name, side, pattern)
        several = np.flatnonzero(np.bincount(side.identities) > 1)
        if len(several):
            what = f"{os.path.basename(side.root)}: {len(several):,} subjects have several pictures"
            advice = "leave the oldest among the probes and the youngest in the gallery"
            visit.wrong(name, what, advice, (side.identity_names[i] for i in several))
    _tell_subjects(visit, name, *sides, pattern)
    _tell_copies(visit, name, _Sides(sides, [visit.examine(name, side) for side in sides]))


def _tell_subjects(visit: Visit, name: str, probe: FaceIndex, gallery: FaceIndex, pattern: FilenamePattern) -> None:
    """Each subject on both sides, and not younger as a probe."""
    probes, others = set(probe.identity_names), set(gallery.identity_names)
    if probes - others:
        what = f"{len(probes - others):,} subjects of the probes are not in the gallery"
        advice = "test.py refuses that: add their youngest pictures to the gallery, or remove their probes"
        visit.wrong(name, what, advice, sorted(probes - others))
    if others - probes:
        what = f"{len(others - probes):,} subjects of the gallery have no probe"
        advice = "the published sides hold the same subjects; more in the gallery makes it harder"
        visit.note(name, what, advice, sorted(others - probes))
    oldest, youngest = _ages_by_subject(probe, pattern, max), _ages_by_subject(gallery, pattern, min)
    younger = [subject for subject, age in oldest.items() if age < youngest.get(subject, age)]
    if younger:
        what = f"{len(younger):,} subjects are younger as a probe than in the gallery"
        visit.wrong(name, what, "exchange their two pictures", younger)


# ---------------------------------------------------------------------------------------------------------- copies


class _Sides(NamedTuple):
    """One or two indices whose pictures must all differ, counted through."""

    indices: list[FaceIndex]
    examined: list[Examined]

    def find(self, i: int) -> tuple[FaceIndex, int]:
        for index in self.indices:
            if i < len(index):
                return index, i
            i -= len(index)
        raise IndexError

    def name(self, i: int) -> str:
        index, k = self.find(i)
        return index.name(k) if len(self.indices) == 1 else f"{os.path.basename(index.root)}/{index.name(k)}"

    def identity(self, i: int) -> str:
        index, k = self.find(i)
        return index.identity_names[index.identities[k]]


def _tell_copies(visit: Visit, name: str, sides: _Sides, is_training: bool = False) -> None:
    """Pictures that are the same byte for byte; in a benchmark they make figures false."""
    groups = equal_groups(np.concatenate([examined.digests for examined in sides.examined]))
    apart = [group for group in groups if len({sides.identity(i) for i in group}) > 1]
    within = [group for group in groups if len({sides.identity(i) for i in group}) == 1]
    severity = "note" if is_training else "wrong"
    if apart:
        what = f"{len(apart):,} pictures lie, byte for byte the same, under different identities"
        advice = "one picture can't be of two people: remove it where it is wrong"
        visit.tell(name, severity, what, advice, named_groups(apart, sides.name))
    if within:
        what = f"{len(within):,} pictures lie several times, byte for byte the same, under one identity"
        visit.tell(name, severity, what, "anything finds a copy: leave one of each", named_groups(within, sides.name))


def named_groups(groups: list[list[int]], name_of: Callable[[int], str]) -> list[str]:
    """Such as "001/a.jpg = 002/b.jpg"."""
    return [" = ".join(name_of(i) for i in group[:NUM_NAMED_COPIES]) for group in groups]
