"""Checks of sets with a folder an identity: training sets, FG-NET, MORPH2."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.check.contradictions import (
    BACKWARDS,
    CONTRADICTIONS_FILE,
    described_by_name,
    find_contradictions,
    in_words,
    read_contradictions,
)
from data.check.findings import MAX_EXAMPLES, OTHER_COUNT, DatasetCheck
from data.check.image_scan import ImageScan, equal_groups
from data.faces import FaceIndex, index_identity_folders
from data.filenames import parse_age
from data.layout import layout_faults, packed
from meta import FILENAME_PATTERNS, Benchmark, FilenamePattern, TrainingSet, UserError

NUM_NAMED_COPIES = 10  # of one picture


def check_training_set(check: DatasetCheck, training: TrainingSet) -> None:
    name, folder = training.name, check.root / training.folder
    if not folder.is_dir():
        report_no_folder(check, name, folder, "", f"{training.how_to_get}; see {training.source}")
        return
    faces = _index(check, name, folder)
    if faces is None:
        return
    _report_counts(check, name, faces, (training.num_identities, training.num_images))
    _report_ages(check, name, faces, FILENAME_PATTERNS[training.pattern], is_training=True)
    # Among millions of pictures from the web some stand under two names: a note.
    _report_copies(check, name, _Sides([faces], [check.scan(name, faces)]), is_training=True)


def check_identity_benchmark(check: DatasetCheck, benchmark: Benchmark) -> None:
    """FG-NET: every picture is compared with every other."""
    name, folder = benchmark.name, check.root / benchmark.folders[0]
    if not folder.is_dir():
        report_missing(check, benchmark, folder)
        return
    faces = _index(check, name, folder, benchmark.align_command)
    if faces is None:
        return
    _report_counts(check, name, faces, (benchmark.num_identities, benchmark.num_images))
    _report_ages(check, name, faces, FILENAME_PATTERNS[benchmark.pattern])
    single = np.flatnonzero(np.bincount(faces.identities) == 1)
    if len(single):
        what = f"{len(single):,} identities have one picture"
        advice = "nothing can find it, so leave-one-out counts it as a miss: add pictures, or remove it"
        check.note(name, what, advice, (faces.identity_names[i] for i in single))
    _report_copies(check, name, _Sides([faces], [check.scan(name, faces)]))


def check_probe_gallery(check: DatasetCheck, benchmark: Benchmark) -> None:
    """MORPH2: in each of its settings one probe and one gallery picture a subject."""
    for count in benchmark.subject_counts:
        name = f"{benchmark.name}_{count}"
        folders = [check.root / folder for folder in benchmark.folders if folder.endswith(f"_{count}")]
        lost = [folder for folder in folders if not folder.is_dir()]
        if len(lost) == len(folders):
            report_missing(check, benchmark, lost[0], name)
        elif lost:
            what = f"there is no folder {str(lost[0])!r}, the other side of this set"
            check.wrong(name, what, f"get {benchmark.source}")
        else:
            _check_sides(check, name, folders, FILENAME_PATTERNS[benchmark.pattern], count, benchmark.align_command)


def report_missing(check: DatasetCheck, benchmark: Benchmark, path: Path, name: str = "") -> None:
    advice = f"get {benchmark.source} and unpack it into {str(check.root / benchmark.unpacked_into)!r}"
    report_no_folder(check, name or benchmark.name, path, f" ({benchmark.notes})", advice)


def report_no_folder(check: DatasetCheck, name: str, folder: Path, notes: str, advice: str) -> None:
    archive = packed(folder)
    if archive is None:
        check.missing(name, f"there is no folder {str(folder)!r}{notes}", advice)
    else:
        what = f"there is no folder {str(folder)!r}, but its archive {archive!r} is there{notes}"
        check.missing(name, what, "unpack it, so that the folder is there")


def _index(check: DatasetCheck, name: str, folder: Path, align_command: str = "") -> FaceIndex | None:
    """The index of identity folders after a look at their layout; None where there is nothing to go on with."""
    looking = f"{name}: looking into folders"
    for fault in layout_faults(folder, repr(str(folder)), align_command, check.progress, looking):
        check.report(name, "wrong" if fault.is_wrong else "note", fault.what, fault.advice, fault.examples)
    try:
        faces = index_identity_folders(folder, None, what=f"{name} images", progress=check.progress)
    except UserError as error:
        check.wrong(name, str(error))
        return None
    check.people.setdefault(name, set()).update(faces.identity_names)
    return faces


def _report_counts(check: DatasetCheck, name: str, faces: FaceIndex, published: tuple[int, int]) -> None:
    counts = (faces.num_identities, len(faces))
    where = os.path.basename(faces.root)
    check.ok(name, f"{where}: {_counted(counts)}")
    if any(published) and counts != published:
        check.note(name, f"{where}: the published set has {_counted(published)}", OTHER_COUNT)


def _counted(counts: tuple[int, int]) -> str:
    return f"{counts[0]:,} identities, {counts[1]:,} images"


# ------------------------------------------------------------------------------------------------------------ ages


def _report_ages(
    check: DatasetCheck, name: str, faces: FaceIndex, pattern: FilenamePattern, is_training: bool = False
) -> None:
    ages, without = Counter(), []
    for i in range(len(faces)):
        try:
            ages[parse_age(faces.name(i), pattern)] += 1
        except UserError:
            if len(without) < MAX_EXAMPLES:
                without.append(faces.name(i))
    where, num_without = os.path.basename(faces.root), len(faces) - sum(ages.values())
    if ages:
        check.ok(name, f"{where}: ages {min(ages)} to {max(ages)}")
    if is_training and not ages:
        advice = f"rename the files as {pattern.example}, or make a table of ages: python prepare.py ages --help"
        check.note(name, f"{where}: no file name holds an age, which stage age needs", advice, without)
    elif without:
        what = f"{where}: {num_without:,} of {len(faces):,} file names hold no age, or none from 0 to 120"
        check.wrong(name, what, f"rename them as {pattern.example}, or leave them out", without)


def _ages_by_subject(side: FaceIndex, pattern: FilenamePattern, choose: Callable[[int, int], int]) -> dict[str, int]:
    """The age of each subject whose file names hold one, of several pictures the chosen one's."""
    ages: dict[str, int] = {}
    for i in range(len(side)):
        try:
            age = parse_age(side.name(i), pattern)
        except UserError:  # reported by _report_ages
            continue
        subject = side.identity_names[side.identities[i]]
        ages[subject] = choose(ages.get(subject, age), age)
    return ages


# ---------------------------------------------------------------------------------------------- probes and gallery


def _check_sides(
    check: DatasetCheck, name: str, folders: list[Path], pattern: FilenamePattern, count: int, align_command: str
) -> None:
    sides = [_index(check, name, folder, align_command) for folder in folders]
    if None in sides:
        return
    for side in sides:
        _report_counts(check, name, side, (count, count))
        _report_ages(check, name, side, pattern)
        several = np.flatnonzero(np.bincount(side.identities) > 1)
        if len(several):
            what = f"{os.path.basename(side.root)}: {len(several):,} subjects have several pictures"
            advice = "leave the oldest among the probes and the youngest in the gallery"
            check.wrong(name, what, advice, (side.identity_names[i] for i in several))
    younger = _report_subjects(check, name, *sides, pattern)
    _report_contradictions(check, name, sides, younger, align_command)
    _report_copies(check, name, _Sides(sides, [check.scan(name, side) for side in sides]))


def _report_subjects(
    check: DatasetCheck, name: str, probe: FaceIndex, gallery: FaceIndex, pattern: FilenamePattern
) -> list[str]:
    """Each subject on both sides, and not younger as a probe; returns those that are."""
    probes, others = set(probe.identity_names), set(gallery.identity_names)
    if probes - others:
        what = f"{len(probes - others):,} subjects of the probes are not in the gallery"
        advice = "test.py refuses that: add their youngest pictures to the gallery, or remove their probes"
        check.wrong(name, what, advice, sorted(probes - others))
    if others - probes:
        what = f"{len(others - probes):,} subjects of the gallery have no probe"
        advice = "the published sides hold the same subjects; more in the gallery makes it harder"
        check.note(name, what, advice, sorted(others - probes))
    oldest, youngest = _ages_by_subject(probe, pattern, max), _ages_by_subject(gallery, pattern, min)
    younger = [subject for subject, age in oldest.items() if age < youngest.get(subject, age)]
    if younger:
        what = f"{len(younger):,} subjects are younger as a probe than in the gallery"
        check.wrong(name, what, "exchange their two pictures", younger)
    return younger


def _report_contradictions(
    check: DatasetCheck, name: str, sides: list[FaceIndex], younger: list[str], align_command: str
) -> None:
    """What the pictures of a subject do not agree on, by their names and by the list that align-morph2 wrote.

    Of subjects that are reported as younger probes nothing more is said of their ages.
    """
    names = [os.path.basename(side.name(i)) for side in sides for i in range(len(side))]
    found = find_contradictions(described for described in map(described_by_name, names) if described)
    listed = Path(sides[0].root).parent / CONTRADICTIONS_FILE
    people = {int(person) for side in sides for person in side.identity_names if person.isdecimal()}
    if listed.is_file():
        try:
            known = read_contradictions(listed)
        except UserError as error:
            check.wrong(name, str(error))
            return
        by_table = {one for one in known if one.subject in people}
        found = sorted({(one.subject, one.what): one for one in (*found, *by_table)}.values())
    found = [one for one in found if one.what != BACKWARDS or f"{one.subject:06d}" not in younger]
    if found:
        advice = (
            f"published figures are of the set as it is; `{align_command} --contradictions drop` makes it without "
            "these subjects"
        )
        check.note(name, in_words(found), advice, (f"{one.subject:06d}: {one.what}: {one.pictures}" for one in found))


# ---------------------------------------------------------------------------------------------------------- copies


class _Sides(NamedTuple):
    """One or two indices whose pictures must all differ, counted through."""

    indices: list[FaceIndex]
    scan: list[ImageScan]

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


def _report_copies(check: DatasetCheck, name: str, sides: _Sides, is_training: bool = False) -> None:
    """Pictures that are the same byte for byte; in a benchmark they make figures false."""
    groups = equal_groups(np.concatenate([scan.digests for scan in sides.scan]))
    apart = [group for group in groups if len({sides.identity(i) for i in group}) > 1]
    within = [group for group in groups if len({sides.identity(i) for i in group}) == 1]
    severity = "note" if is_training else "wrong"
    if apart:
        what = f"{len(apart):,} pictures lie, byte for byte the same, under different identities"
        advice = "one picture can't be of two people: remove it where it is wrong"
        check.report(name, severity, what, advice, named_groups(apart, sides.name))
    if within:
        what = f"{len(within):,} pictures lie several times, byte for byte the same, under one identity"
        check.report(name, severity, what, "anything finds a copy: leave one of each", named_groups(within, sides.name))


def named_groups(groups: list[list[int]], name_of: Callable[[int], str]) -> list[str]:
    """Such as "001/a.jpg = 002/b.jpg"."""
    return [" = ".join(name_of(i) for i in group[:NUM_NAMED_COPIES]) for group in groups]
