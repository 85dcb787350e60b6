"""The benchmarks as they lie on disk: which there are, and the pictures of each with what is known of them."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.alignment.aligned_faces import align_index, with_aligned
from data.alignment.photos import Aligner
from data.faces import (
    FaceIndex,
    Faces,
    age_groups_of,
    index_identity_folders,
    index_names,
    index_pictures,
    with_ages,
)
from data.filenames import find_age
from data.layout import is_drawn, no_such_folder
from data.lists.pair_lists import read_any_pair_list
from data.pairs import PairList, check_folds, find_pair_list, make_pairs, read_answers, read_pair_list
from data.verification_bins import VerificationBin, read_verification_bin
from meta import (
    AGE_GROUP_NAMES,
    BENCHMARKS,
    FACE_DATASET_FOLDER,
    FILENAME_PATTERNS,
    PUBLISHED_FIGURES,
    Benchmark,
    UserError,
)
from utils.files import sha256
from utils.progress import progress

Report = Callable[[str], None]  # takes one sentence
NUM_NAMES_SHOWN = 3  # of missing pictures, in a message


@dataclass(frozen=True)
class EvalSpec:
    """What to open, run and report: a benchmark, one of MORPH2's sizes, or a set of the user's."""

    name: str  # in results.json
    title: str  # on the screen
    benchmark: Benchmark
    face_dataset: Path = Path(FACE_DATASET_FOLDER)
    folders: tuple[Path, ...] = ()
    path: Path | None = None  # of a verification set
    num_subjects: int = 0  # of MORPH2
    pattern: str | None = None  # of the ages in file names
    published_as: str | None = None  # under which name papers report it, see meta.PUBLISHED_FIGURES
    aligner: Aligner | None = None  # of the photographs of a pair list of the user's
    workers: int = 0  # processes that align

    @property
    def how_to_get(self) -> str:
        """For messages; "" where the set is the user's own."""
        if not self.benchmark.source:
            return ""
        return (
            f"get {self.benchmark.source} and unpack it into {self.face_dataset / self.benchmark.unpacked_into}, or "
            f"draw made-up faces with `python prepare.py synthetic --output demo/face_dataset` and add --face-dataset "
            f"demo/face_dataset"
        )


@dataclass(frozen=True, eq=False)
class EvalSet:
    """An open evaluation set: its pictures on one side, or as probes and gallery, and the pairs of a pair list."""

    spec: EvalSpec
    sides: tuple[tuple[Faces, str], ...]  # pictures, and what they are called while they are embedded
    pairs: PairList | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)  # key in results.json -> number of pictures

    @property
    def protocol(self) -> str:
        return self.spec.benchmark.protocol

    @property
    def drawn(self) -> bool:
        """Whether faces in it were drawn by program, which no published figure is of."""
        return any(is_drawn(faces.root) for faces, _ in self.sides)

    @property
    def title(self) -> str:
        return f"{self.spec.title} (drawn faces)" if self.drawn else self.spec.title

    @property
    def sha256(self) -> str | None:
        """Of a verification set's file."""
        return self.pairs.sha256 if isinstance(self.pairs, VerificationBin) else None

    def name(self, faces: Faces, i: int) -> str:
        """Picture i of one side, in reports; two sides may have pictures of one name."""
        return faces.key(i) if len(self.sides) == 1 else f"{Path(faces.root).name}/{faces.key(i)}"


OWN_FOLDER = Benchmark("folder", "identity folders", "leave_one_out", folders=(), pattern=None, source="",
                       unpacked_into="", notes="one folder a person")  # fmt: skip
OWN_AGES = Benchmark("ages", "pictures with ages", "all_impostors", folders=(), pattern=None, source="",
                     unpacked_into="", notes="nobody says who the people are")  # fmt: skip
OWN_BIN = Benchmark("bin", "verification set", "ten_fold_verification", folders=(), pattern=None, source="",
                    unpacked_into="")  # fmt: skip


OWN_PAIRS = Benchmark("pairs", "pair list", "ten_fold_verification", folders=(), pattern=None, source="",
                      unpacked_into="")  # fmt: skip


# ---------------------------------------------------------------------------------------------------- which there are


def specs_of_benchmark(face_dataset: Path, benchmark: Benchmark, subject_counts: Sequence[int] = ()) -> list[EvalSpec]:
    """The benchmark, or each size of MORPH2: the published ones, or `subject_counts`."""
    folders = tuple(face_dataset / folder for folder in benchmark.folders)
    if not benchmark.subject_counts:
        known = {"pattern": benchmark.pattern, "published_as": benchmark.name}
        return [EvalSpec(benchmark.name, benchmark.title, benchmark, face_dataset, folders, **known)]
    root = folders[0].parent
    return [
        EvalSpec(
            f"{benchmark.name}_{count}",
            f"{benchmark.title} {count:,}",
            benchmark,
            face_dataset,
            (root / f"probe_{count}", root / f"gallery_{count}"),
            num_subjects=count,
            pattern=benchmark.pattern,
            published_as=benchmark.name,
        )
        for count in subject_counts or benchmark.subject_counts
    ]


def specs_of_folders(
    paths: Sequence[Path], pattern: str | None, beside: Sequence[EvalSpec] = (), benchmark: Benchmark = OWN_FOLDER
) -> list[EvalSpec]:
    """Sets of the user's: one folder a person, or OWN_AGES; `beside` them run others, whose names stay theirs."""
    names = short_names(paths, _taken_names(beside))
    return [
        EvalSpec(name, name, benchmark, folders=(path,), pattern=pattern)
        for path, name in zip(paths, names, strict=True)
    ]


def specs_of_bins(paths: Sequence[Path], beside: Sequence[EvalSpec] = ()) -> list[EvalSpec]:
    """InsightFace verification sets; `beside` them run others. lfw.bin is reported as LFW, lfw_old.bin is not."""
    reported = {f"{figure.benchmark}.bin": figure.benchmark for figure in PUBLISHED_FIGURES
                if figure.protocol in ("verification", "insightface_accuracy")}  # fmt: skip
    names = short_names(paths, _taken_names(beside))
    return [
        EvalSpec(name, name, OWN_BIN, path=path, published_as=reported.get(path.name))
        for path, name in zip(paths, names, strict=True)
    ]


def specs_of_pair_lists(
    paths: Sequence[Path], images: Path, aligner: Aligner | None, workers: int, beside: Sequence[EvalSpec] = ()
) -> list[EvalSpec]:
    """Pair lists of the user's, all of pictures in one folder; `beside` them run others."""
    names = short_names(paths, _taken_names(beside))
    return [
        EvalSpec(name, name, OWN_PAIRS, folders=(images,), path=path, aligner=aligner, workers=workers)
        for path, name in zip(paths, names, strict=True)
    ]


def _taken_names(specs: Iterable[EvalSpec]) -> set[str]:
    """Names and titles of these and of the published benchmarks: no set of the user's may go by them."""
    published = (one for benchmark in BENCHMARKS.values() for one in specs_of_benchmark(Path(), benchmark))
    return {name for spec in (*published, *specs) for name in (spec.name, spec.title)}


def find_spec(name: str, face_dataset: Path) -> EvalSpec:
    """The spec of a name such as fgnet or morph2_3000, or of the path of a .bin file.

    Raises:
        UserError: there is none.
    """
    published = {
        spec.name: spec for benchmark in BENCHMARKS.values() for spec in specs_of_benchmark(face_dataset, benchmark)
    }
    if name in published:
        return published[name]
    if Path(name).suffix == ".bin":
        return specs_of_bins((Path(name),))[0]
    raise UserError(f"{name!r} is no benchmark: give one of {', '.join(published)}, or the path of a .bin file.")


def short_names(paths: Sequence[Path], taken: Iterable[str] = ()) -> list[str]:
    """The last parts of each path, as many as it takes to differ from the others and from the names that are taken.

    Raises:
        UserError: the same path twice.
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"the same path is given twice among {', '.join(map(str, paths))}: give each once.")
    names, num_parts, taken = [own[-1] for own in parts], [1] * len(parts), set(taken)
    while clashing := {name for name, count in Counter(names).items() if count > 1 or name in taken}:
        for i in range(len(names)):
            if names[i] in clashing:
                num_parts[i] += 1
                names[i] = "/".join(parts[i][-num_parts[i] :])
    return names


# ------------------------------------------------------------------------------------------------------------- opening


def open_eval_set(spec: EvalSpec, report: Report, seed: int = 0, allow_missing: bool = False) -> EvalSet:
    """The set with its pictures listed; none is decoded.

    `report` gets what is worth knowing. `seed` draws subjects of MORPH2 where there are no folders of their number;
    `allow_missing` leaves out pairs whose pictures are missing, and counts them.

    Raises:
        UserError: a folder, list or picture is missing or wrong.
    """
    return OPENERS[spec.benchmark.protocol](spec, report, seed, allow_missing)


def open_complete_eval_set(name: str, face_dataset: Path) -> EvalSet:
    """The benchmark of a name, see `find_spec`, with all of its pictures.

    Raises:
        UserError: it is unknown, or a folder, list or picture is missing or wrong.
    """
    spec = find_spec(name, face_dataset)
    opened = open_eval_set(spec, lambda sentence: None, allow_missing=True)
    if opened.pairs is not None and opened.pairs.missing:
        missing = opened.pairs.missing
        shown = ", ".join(missing[:NUM_NAMES_SHOWN]) + (", ..." if len(missing) > NUM_NAMES_SHOWN else "")
        raise UserError(f"{spec.folders[0]} lacks {len(missing)} pictures of the pair list ({shown}): add them, or "
                        f"leave {name} out.")  # fmt: skip
    return opened


def _open_identities(spec: EvalSpec, report: Report, seed: int, allow_missing: bool) -> EvalSet:
    return EvalSet(spec, ((_index_identities(spec, spec.folders[0]), spec.title),))


def _open_probe_gallery(spec: EvalSpec, report: Report, seed: int, allow_missing: bool) -> EvalSet:
    """One probe and one gallery image a subject."""
    folders, draw = spec.folders, False
    if not any(folder.is_dir() for folder in folders) and spec.num_subjects not in spec.benchmark.subject_counts:
        folders, draw = _largest_morph2(spec), True
    probe, gallery = (_index_identities(spec, folder) for folder in folders)
    if draw:
        probe, gallery = _draw_subjects(probe, gallery, spec.num_subjects, seed)
        report(f"{spec.title}: drawn by --seed {seed} from {folders[0].name}, {folders[1].name}")
    return EvalSet(spec, ((probe, f"{spec.title} probes"), (gallery, f"{spec.title} gallery")))


def _largest_morph2(spec: EvalSpec) -> tuple[Path, Path]:
    """The folders of the largest number of subjects that has both."""
    root = spec.folders[0].parent
    counts = [int(path.name.removeprefix("probe_")) for path in root.glob("probe_*") if path.name[6:].isdecimal()]
    counts = [count for count in counts if (root / f"gallery_{count}").is_dir()]
    if not counts:
        raise UserError(f"{root} holds no probe_N and gallery_N: {spec.how_to_get}.")
    return root / f"probe_{max(counts)}", root / f"gallery_{max(counts)}"


def _draw_subjects(probe: FaceIndex, gallery: FaceIndex, count: int, seed: int) -> tuple[FaceIndex, FaceIndex]:
    """The two sides with `count` subjects that both have, drawn by `seed`."""
    both = sorted(set(probe.identity_names) & set(gallery.identity_names))
    if len(both) < count:
        raise UserError(f"--morph2-subjects {count}: {probe.root} and {gallery.root} have {len(both)} subjects in "
                        f"common: give a smaller number.")  # fmt: skip
    drawn = {both[i] for i in np.random.default_rng(seed).permutation(len(both))[:count]}
    sides = [
        side.of_identities(k for k, name in enumerate(side.identity_names) if name in drawn)
        for side in (probe, gallery)
    ]
    return sides[0], sides[1]


def _open_pairs(spec: EvalSpec, report: Report, seed: int, allow_missing: bool) -> EvalSet:
    left_out: dict[str, int] = {}
    if spec.benchmark is OWN_PAIRS:
        pairs, left_out = _read_own_pairs(spec, report, allow_missing)
    else:
        pairs = _read_pairs(spec, report, allow_missing)
    if pairs.num_pairs_dropped:
        report(f"{spec.title}: {pairs.num_pairs_dropped} pairs left out, {len(pairs.missing)} images missing; its "
               f"figures are not comparable with published ones")  # fmt: skip
    return EvalSet(spec, ((pairs.images, spec.title),), pairs, left_out)


def _index_identities(spec: EvalSpec, folder: Path) -> FaceIndex:
    return index_identity_folders(
        folder,
        None if spec.pattern is None else FILENAME_PATTERNS[spec.pattern],
        min_identities=2,
        what=f"{spec.title} images ({spec.benchmark.notes})",
        how_to_get=spec.how_to_get,
        align_command=spec.benchmark.align_command if spec.benchmark.source else "",
    )


def _read_pairs(spec: EvalSpec, report: Report, allow_missing: bool) -> PairList:
    """The pairs of a .bin file, of the list, or, for CACD-VS without one, of the rule by which its list is made."""
    if spec.path is not None:
        pairs = read_verification_bin(spec.path)
        check_folds(pairs.genuine, spec.path)
        report(f"{spec.path}: {len(pairs):,} pairs, SHA-256 {pairs.sha256}")
        return pairs
    benchmark, images = spec.benchmark, spec.folders[0]
    if not images.is_dir():
        raise UserError(no_such_folder(images, f"{spec.title} images ({benchmark.notes})", spec.how_to_get))
    list_path, places = find_pair_list(spec.face_dataset, benchmark), benchmark.pair_lists
    if list_path is not None:
        pairs = read_pair_list(list_path, images, allow_missing)
        check_folds(read_answers(list_path), list_path)  # of the whole list, as prepare.py check does
    elif benchmark.pair_rule is not None:
        pairs = make_pairs(benchmark, images, allow_missing)
        if places:
            report(f"{spec.title}: there is no list {spec.face_dataset / places[0]}; the pairs are made by its rule")
    else:
        raise UserError(f"pair list {spec.face_dataset / places[0]} does not exist: {spec.how_to_get}.")
    return pairs


def _read_own_pairs(spec: EvalSpec, report: Report, allow_missing: bool) -> tuple[PairList, dict[str, int]]:
    """The pairs of a list of the user's, their photographs aligned, and how many were aligned in which way."""
    pairs, notes = read_any_pair_list(spec.path, spec.folders[0], allow_missing)
    for note in notes:
        report(note)
    if spec.aligner is None:
        return pairs, {}
    aligned = align_index(pairs.images, spec.aligner, spec.workers, functools.partial(progress, silent_below=2.0))
    for note in aligned.notes[:NUM_NAMES_SHOWN]:
        report(f"{spec.title}: {note}")
    if len(aligned.notes) > NUM_NAMES_SHOWN:
        report(f"{spec.title}: {len(aligned.notes) - NUM_NAMES_SHOWN:,} more such notes on alignment")
    if aligned.failures and not allow_missing:
        raise UserError(f"{len(aligned.failures):,} of the {len(pairs.images):,} pictures can't be aligned, the first: "
                        f"{next(iter(aligned.failures.values()))} --allow-missing leaves their pairs out.")  # fmt: skip
    for reason in aligned.failures.values():
        report(f"{spec.title}: left out: {reason}")
    counts = {f"num_aligned_{how.replace(' ', '_')}": count for how, count in sorted(aligned.aligned_by.items())}
    return with_aligned(pairs, aligned), counts


def _open_pictures(spec: EvalSpec, report: Report, seed: int, allow_missing: bool) -> EvalSet:
    """Pictures of known age anywhere below the folder, each file once."""
    folder, pattern = spec.folders[0], FILENAME_PATTERNS[spec.pattern]
    if not folder.is_dir():
        raise UserError(no_such_folder(folder, spec.benchmark.title, "check its path"))
    found = index_pictures(folder, spec.benchmark.title)
    names = map(found.name, range(len(found)))
    known = {name: age for name in names if (age := find_age(name, pattern)) is not None}
    digests: dict[str, str] = {}  # of each file the first name
    for name in known:
        digests.setdefault(sha256(folder / name), name)
    ages = np.array([known[name] for name in digests.values()], np.int64)
    _check_ages(ages, spec, found.name(0))
    left_out = {"num_without_age_left_out": len(found) - len(known), "num_duplicates_left_out": len(known) - len(ages)}
    report(f"{spec.title}: {len(ages):,} pictures of ages {ages.min()} to {ages.max()}; left out: "
           f"{left_out['num_without_age_left_out']:,} without an age in the name, "
           f"{left_out['num_duplicates_left_out']:,} exact duplicates; every pair counts as two people")  # fmt: skip
    faces = with_ages(index_names(folder, digests.values()), ages)
    return EvalSet(spec, ((faces, spec.title),), left_out=left_out)


def _check_ages(ages: np.ndarray, spec: EvalSpec, example: str) -> None:
    """Raises UserError where nothing can be compared by age."""
    groups = np.unique(age_groups_of(ages, len(ages)))
    if len(groups) > 1:
        return
    pattern = FILENAME_PATTERNS[spec.pattern]
    holds = f"ages {AGE_GROUP_NAMES[groups[0]]} only" if len(groups) else "no ages"
    raise UserError(f"The names of the pictures in {str(spec.folders[0])!r}, such as {example!r}, hold {holds} as the "
                    f"pattern {pattern.name!r} reads them ({pattern.example}): give the --names that fits them, or "
                    "pictures of several age groups.")  # fmt: skip


OPENERS = {
    "leave_one_out": _open_identities,
    "probe_gallery": _open_probe_gallery,
    "ten_fold_verification": _open_pairs,
    "all_impostors": _open_pictures,
}
