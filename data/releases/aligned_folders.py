"""Raw pictures with landmarks -> a folder of aligned faces: the part that is the same for every data set.

A plan says which picture goes where; nothing is written before it is whole. A folder is filled under a hidden name
beside its own, and takes its name when it is complete: started again, the work goes on with what is missing. Beside the
aligned pictures stands of which size and time their sources were: one that was replaced since is aligned anew.
"""

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from data.alignment.choice import Note
from data.alignment.detectors import DetectorError
from data.alignment.photos import Aligner
from data.alignment.template import alignment_sheet, check_points
from data.transforms import UnreadablePicture
from meta import IMAGE_SIZE, UserError
from utils.files import Progress, no_progress, written_beside
from utils.worker_processes import signals_held, worker_pool

JPEG_QUALITY = 95
# Chroma at full resolution: a face of 112 pixels has none to give away.
SAVE_OPTIONS = {
    ".jpg": {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".bmp": {"format": "BMP"},
    ".webp": {"format": "WEBP", "lossless": True},
}
NUM_SHOWN = 3  # of pictures left out, in a message
PICTURES_A_CHUNK = 16  # to a process at a time
MARKER = ".aligned-"  # a hidden file among the pictures: a JSON list [first target, source's size, its time] a line
LEFT_OUT, NOTES = "left_out.csv", "notes.csv"  # beside the folder, after its name
AS_BEFORE = "left out when the folder was written"


@dataclass(frozen=True, eq=False)
class Face:
    """A picture and where it goes."""

    source: str
    targets: tuple[str, ...]  # below the plan's folder; the picture is aligned once
    points: np.ndarray | None  # (5, 2) pixels; None where it is aligned already, or the plan has a detector
    name: str = ""  # in messages, where it isn't the source

    @property
    def shown(self) -> str:
        return self.name or self.source


@dataclass
class Plan:
    """What one folder below face_dataset/ will hold."""

    title: str
    folder: str
    identity_folders: bool  # one for each person, or all pictures in one
    inputs: list[Path | None]  # what it is made from, where given: never written into
    faces: list[Face] = field(default_factory=list)
    lists: dict[str, str] = field(default_factory=dict)  # text files: path below the folder -> content
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (picture, reason)
    notes: list[str] = field(default_factory=list)  # what else a person should know
    aligner: Aligner = Aligner(assume_aligned=True)  # for pictures without points
    settings: str = ""  # what else decides what is written: the detector and its choice

    def add(self, source: Path, name: str, targets: Iterable[str], find_points: "PointFinder | None") -> None:
        """Takes a picture in, or leaves it out with a reason; `name` is its path in the release."""
        if face := self.usable(source, name, find_points):
            self.faces.append(replace(face, targets=tuple(targets)))

    def usable(self, source: Path, name: str, find_points: "PointFinder | None") -> Face | None:
        """The picture with its points and no targets yet, or None after noting why it is left out."""
        if find_points is None:
            return Face(str(source), (), None)
        try:
            points = find_points(name)
            if points is None:
                raise UserError("no landmarks")
            check_points(points)
        except UserError as error:
            self.left_out.append((name, str(error)))
            return None
        return Face(str(source), (), points)

    def counts(self) -> dict[str, tuple[int, int]]:
        """(pictures, identities or 0) in each folder that will hold pictures or folders of people."""
        pictures: Counter[str] = Counter()
        people: dict[str, set[str]] = {}
        for target in (PurePosixPath(target) for face in self.faces for target in face.targets):
            person = target.parent if self.identity_folders else target
            place = str(PurePosixPath(self.folder) / person.parent)
            pictures[place] += 1
            people.setdefault(place, set()).add(person.name)
        return {place: (count, len(people[place] - {""}) * self.identity_folders) for place, count in pictures.items()}


PointFinder = Callable[[str], np.ndarray | None]  # path of a picture in its release -> its five points


@dataclass(frozen=True)
class Written:
    """What became of a plan."""

    folder: Path
    counts: dict[str, tuple[int, int]]  # as Plan.counts, without what failed
    num_kept: int  # pictures that an earlier, interrupted run had written
    left_out: list[tuple[str, str]]
    left_out_path: Path | None  # the same as a CSV
    sheet: Path
    noted: list[tuple[str, Note]]  # (picture, what should be known about it)
    notes_path: Path | None  # the same as a CSV


@dataclass(frozen=True)
class Outcome:
    """What became of one picture."""

    failure: str | None = None  # why there is no aligned face
    notes: tuple[Note, ...] = ()


def write_plan(
    plan: Plan,
    root: str | Path,
    *,
    size: int = IMAGE_SIZE,
    workers: int = 1,
    allow_missing: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> Written:
    """Aligns the pictures of a plan into `plan.folder` below `root`, with its lists, and a sheet to look at beside it.

    Where the folder was written from the same pictures and points before, nothing is done. The same pictures are those
    of the same size and time: of an unfinished folder others are aligned anew, a finished one is refused.
    JPEG files have quality 95 and full chroma; a picture that is aligned already and has the size is copied as it is.
    Pictures that can't be used are named in `FOLDER_left_out.csv` beside the folder, notes stand in `FOLDER_notes.csv`.

    Raises:
        UserError: where the folder exists and `force` is not given, would hold what it is made from, or two pictures
            would have one name; and for pictures that can't be used where `allow_missing` is not given.
    """
    folder = Path(root) / plan.folder
    marker = f"{MARKER}{_fingerprint(plan, size)}"
    states = {face.targets[0]: _size_and_time(face.source) for face in plan.faces}  # before the sources are read
    if not force and (finished := _finished(plan, folder, folder / marker, states, allow_missing)):
        return finished
    _check_folder(plan, folder, force)
    _settle(plan, plan.left_out, folder, allow_missing)
    partial = folder.with_name(f".{folder.name}.unfinished-{marker.removeprefix(MARKER)}")
    for parent in {partial, *((partial / target).parent for face in plan.faces for target in face.targets)}:
        parent.mkdir(parents=True, exist_ok=True)
    missing = _missing(plan, partial, partial / marker, states)
    work = functools.partial(write_face, folder=str(partial), size=size, aligner=plan.aligner)
    outcomes = progress(in_processes(work, missing, workers), len(missing), plan.title)
    failed = _noting(zip(missing, outcomes, strict=True), partial / marker, states)
    left_out = plan.left_out + [(face.shown, reason) for face, reason in failed]
    left_out_path = _settle(plan, left_out, folder, allow_missing)

    lost = {face.targets[0] for face, _ in failed}
    written = replace(plan, faces=[face for face in plan.faces if face.targets[0] not in lost])
    if not written.faces:
        raise UserError(f"No picture of {plan.title} can be used: {str(left_out_path)!r} says why.")
    for name, text in plan.lists.items():
        with written_beside(partial / name, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
    sheet = _beside(folder, "alignment.png")
    alignment_sheet([partial / target for target in sorted(face.targets[0] for face in written.faces)], sheet)
    noted = _notes_of(written, partial / marker)
    rows = [(name, note.kind, note.sentence) for name, note in noted]
    notes_path = _write_table(_beside(folder, NOTES), ("picture", "kind", "note"), rows)
    _put_in_place(partial, folder)
    num_kept = len(plan.faces) - len(missing)
    return Written(folder, written.counts(), num_kept, left_out, left_out_path, sheet, noted, notes_path)


def _beside(folder: Path, name: str) -> Path:
    """Beside the folder, where no index of its pictures looks."""
    return folder.with_name(f"{folder.name}_{name}")


States = dict[str, tuple[int, int]]  # first target of a picture -> size and time of its source


def _size_and_time(path: str) -> tuple[int, int]:
    """Bytes of a file and when it was changed (ns); (-1, -1) where there is none: to read it is the error."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _as_line(target: str, state: tuple[int, int], notes: Iterable[Note]) -> str:
    return json.dumps([target, *state, *notes]) + "\n"


def _noting(outcomes: Iterable[tuple[Face, Outcome]], marker: Path, states: States) -> list[tuple[Face, str]]:
    """Notes of each picture what its source was like; gives those that failed, with the reason."""
    failed = []
    with open(marker, "a", encoding="ascii") as file:
        for face, outcome in outcomes:
            file.write(_as_line(face.targets[0], states[face.targets[0]], outcome.notes))
            file.flush()
            if outcome.failure is not None:
                failed.append((face, outcome.failure))
    return failed


def _noted(marker: Path) -> dict[str, tuple[tuple[int, int], list[Note]]]:
    """What stands in the marker, by first target: size and time of the source, and notes; nothing without one."""
    found = {}
    for line in marker.read_text(encoding="ascii", errors="replace").splitlines() if marker.exists() else ():
        with contextlib.suppress(ValueError, TypeError):  # cut off where a process was killed
            target, size, time, *notes = json.loads(line)
            found[target] = (size, time), [Note(*note) for note in notes]
    return found


def _notes_of(plan: Plan, marker: Path) -> list[tuple[str, Note]]:
    noted = _noted(marker)
    return [(face.shown, note) for face in plan.faces if (found := noted.get(face.targets[0])) for note in found[1]]


def _write_table(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path | None:
    """A CSV, or none where there are no rows; gives its path."""
    if not rows:
        path.unlink(missing_ok=True)  # of an earlier run
        return None
    with written_beside(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
    return path


def _missing(plan: Plan, partial: Path, marker: Path, states: States) -> list[Face]:
    """The pictures that were not aligned yet, or when their sources were other files; the marker keeps the others."""
    noted = _noted(marker)
    missing = {
        face.targets[0]: face
        for face in plan.faces
        if not _is_same(face, noted, states) or not all((partial / target).exists() for target in face.targets)
    }
    with written_beside(marker, "w", encoding="ascii") as file:  # before a target is replaced
        file.writelines(_as_line(target, *noted[target]) for target in states if target not in missing)
    return list(missing.values())


def _is_same(face: Face, noted: dict, states: States) -> bool:
    target = face.targets[0]
    return target in noted and noted[target][0] == states[target]


def _finished(plan: Plan, folder: Path, marker: Path, states: States, allow_missing: bool) -> Written | None:
    """What there is where the same work was done before, else None; raises UserError for sources replaced since."""
    if not marker.exists():
        return None
    noted = _noted(marker)
    replaced = [face.source for face in plan.faces if not _is_same(face, noted, states)]
    if replaced:
        raise UserError(
            f"{str(folder)!r} exists, and {len(replaced):,} of its pictures were made when their sources had another "
            f"size or time ({replaced[0]!r}), or by a version that did not note these: give another --output, or "
            "--force to replace all of it."
        )
    present, left_out = [], list(plan.left_out)
    for face in plan.faces:
        if all((folder / target).exists() for target in face.targets):
            present.append(face)
        else:
            left_out.append((face.shown, AS_BEFORE))
    if left_out and not allow_missing:
        return None
    path = _beside(folder, LEFT_OUT) if left_out else None
    written = replace(plan, faces=present)
    notes = _notes_of(written, marker)
    return Written(
        folder, written.counts(), len(present), left_out, path, _beside(folder, "alignment.png"),
        notes, _beside(folder, NOTES) if notes else None,
    )  # fmt: skip


def write_face(face: Face, folder: str, size: int, aligner: Aligner) -> Outcome:
    """Writes the targets of one picture.

    Raises:
        DetectorError: the detector is at fault and no picture.
    """
    targets = [Path(folder, target) for target in face.targets]
    for target in targets:  # made of what the source was before: must not stay where it can't be read any more
        target.unlink(missing_ok=True)
    try:
        found = aligner.aligned(face.source, face.shown, face.points, size)
    except DetectorError:
        raise
    except UnreadablePicture as error:
        return Outcome(error.reason)
    except UserError as error:
        return Outcome(str(error))
    suffix = targets[0].suffix.lower()
    if found.is_unchanged and Path(face.source).suffix.lower() == suffix:
        _write_all(targets, Path(face.source).read_bytes())
    else:
        buffer = io.BytesIO()
        found.picture.save(buffer, **SAVE_OPTIONS[suffix])
        _write_all(targets, buffer.getvalue())
    return Outcome(None, found.notes)


def _write_all(targets: list[Path], content: bytes) -> None:
    for target in targets:
        with written_beside(target) as file:
            file.write(content)


def in_processes(work: Callable[[Face], Outcome], faces: list[Face], workers: int) -> Iterator[Outcome]:
    """The outcomes in the order of the faces."""
    if workers <= 1:
        yield from map(work, faces)
        return
    with worker_pool(workers) as pool:
        try:
            with signals_held():
                outcomes = pool.map(work, faces, chunksize=PICTURES_A_CHUNK)
            yield from outcomes
        except BrokenProcessPool as error:
            raise UserError(
                "A process that aligns was ended from outside, perhaps for lack of memory: give fewer --workers and "
                "start again; what is done is kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _check_folder(plan: Plan, folder: Path, force: bool) -> None:
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if os.path.lexists(folder) and not is_empty and not force:
        raise UserError(f"{str(folder)!r} exists: give another --output, or --force to replace all of it.")
    for path in filter(None, plan.inputs):
        if path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{str(path)!r} lies in {str(folder)!r}, which is to be written: move it, or give another "
                            "--output.")  # fmt: skip
    sources: dict[str, str] = {}
    for face in plan.faces:
        for target in face.targets:
            # Lower case: on the file systems of Windows and macOS two such names are one.
            if other := sources.get(target.lower()):
                raise UserError(f"{other!r} and {face.source!r} would both become {target!r}: remove one of them.")
            sources[target.lower()] = face.source


def _settle(plan: Plan, left_out: list[tuple[str, str]], folder: Path, allow_missing: bool) -> Path | None:
    """Writes the list of pictures left out and gives its path; stops where there are some and that wasn't allowed."""
    path = _write_table(_beside(folder, LEFT_OUT), ("picture", "reason"), left_out)
    if path is not None and not allow_missing:
        shown = "; ".join(f"{name!r}: {reason.rstrip('.')}" for name, reason in left_out[:NUM_SHOWN])
        raise UserError(
            f"{len(left_out):,} pictures of {plan.title} can't be used, named in {str(path)!r} ({shown}"
            f"{'; ...' if len(left_out) > NUM_SHOWN else ''}): repair them, or give --allow-missing to leave them out."
        )
    return path


def _fingerprint(plan: Plan, size: int) -> str:
    """Of all that decides what is written: work that was begun for other landmarks is not gone on with."""
    digest = hashlib.sha256(f"{size} {JPEG_QUALITY}{plan.settings}".encode())
    for face in plan.faces:
        points = None if face.points is None else face.points.tolist()
        digest.update(repr((face.source, face.targets, points)).encode("utf-8", "surrogateescape"))
    digest.update(repr(sorted(plan.lists.items())).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:8]


def _put_in_place(partial: Path, folder: Path) -> None:
    """Gives the finished folder its name, removes the old one and what was begun and never finished."""
    for half in partial.rglob(".*.part"):  # of processes that were killed
        half.unlink()
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if os.path.lexists(folder):
        folder.rename(old)
    partial.rename(folder)
    for path in (old, *folder.parent.glob(f".{folder.name}.unfinished-????????")):
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
